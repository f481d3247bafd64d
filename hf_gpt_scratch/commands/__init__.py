"""The subcommands of `hf-gpt-scratch`, one module each; a script in scripts/ calls the same function."""
