"""A rank that follows rank 0 of a program: ``python -m graph_gemma.runners.llm.follower``, which LLM starts."""

from graph_gemma.runners.command_line.parent_process import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    # Importing torch takes seconds, in which the program may end.
    from graph_gemma.runners.llm.follow import main

    main()
