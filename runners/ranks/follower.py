"""A rank that follows a program: ``python -m runners.ranks.follower``, as runners.ranks.followers starts it."""

from runners.ranks.parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    # Importing torch takes seconds, in which the program may end.
    from runners.ranks.followers import main

    main()
