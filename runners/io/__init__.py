"""What goes in and comes out: prompts, tokenizer, answers and other files."""
