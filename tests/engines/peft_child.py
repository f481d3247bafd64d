"""Makes an adapter with PEFT, and PEFT's own greedy ids; fresh_interpreter.py runs it where hf_gpt_scratch is not."""


def make_adapter(path: str, output: str, prompts: list[list[int]], new_tokens: int) -> dict:
    """Draw an adapter of every projection of the layers, save it, and continue each prompt with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    options = {"r": 8, "lora_alpha": 32, "target_modules": targets, "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**options, init_lora_weights=False)).eval()
    model.save_pretrained(output)
    ids = [
        model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip
    return {"ids": ids, "adapted": sorted({name.split(".")[-4] for name in model.state_dict() if "lora_B" in name})}
