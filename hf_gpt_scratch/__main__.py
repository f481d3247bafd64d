"""`python -m hf_gpt_scratch` and `accelerate launch -m hf_gpt_scratch`: the command `hf-gpt-scratch`."""

from hf_gpt_scratch.commands.console import main


if __name__ == "__main__":
    main()
