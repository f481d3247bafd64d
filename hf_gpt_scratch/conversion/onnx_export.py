"""Export of our repository folder to ONNX as transformers.js loads it: the stock export, with `onnx/` in it."""

import importlib.util
import logging
import math
from pathlib import Path
from typing import Any

from hf_gpt_scratch.conversion.cards import render_stock_card
from hf_gpt_scratch.conversion.convert import REPORT_FILE, OutputOptions, describe_files
from hf_gpt_scratch.conversion.export import check_model, write_stock
from hf_gpt_scratch.conversion.mapping import EMBEDDING, HEAD
from hf_gpt_scratch.conversion.readers.safetensors_reader import SafetensorsFiles
from hf_gpt_scratch.conversion.readers.sources import Source, open_source
from hf_gpt_scratch.data.documents import read_text
from hf_gpt_scratch.data.sample_texts import bundled_text_path
from hf_gpt_scratch.runtime.files import atomic_folder, write_json


# Where transformers.js looks for dtype "fp32" and "q8".
FLOAT_FILE, QUANTIZED_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
MAX_FILE_BYTES = 2**31 - 2**20  # of a file in protobuf, less its nodes


def export_onnx(path: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:
    """Write the stock export with ONNX files in float32 and with 8-bit weights, atomically and verified.

    Arguments and errors are those of `export_stock`; ValueError also says that the model is too large for an ONNX
    file, or that a package is missing. `generation_config.json` says that a text ends with the context.
    """
    if missing := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"--export_onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    how = OutputOptions(**options)
    with atomic_folder(Path(output)) as folder:
        source = open_source(path)
        check_size(source)
        context = check_model(source)["max_position_embeddings"]
        report = write_stock(source, folder, Path(output).name, how, max_length=context)
        config = report["config"]
        how.say("writing ONNX: float32, then 8-bit weights")
        write_files(folder, config)
        report["onnx"] = {"verification": None}
        if how.verify:
            # Imported here, as in `write_files`: they need the packages.
            from hf_gpt_scratch.conversion.verify_onnx import verify_files

            how.say("verifying the ONNX files in ONNX Runtime")
            words = read_text(Path(how.text) if how.text else bundled_text_path())
            written = folder / FLOAT_FILE, folder / QUANTIZED_FILE
            verification = verify_files(*written, source.tensors, config, report["dtype"], words)
            report["onnx"]["verification"] = verification
        files = describe_files([folder / FLOAT_FILE, folder / QUANTIZED_FILE])
        report["onnx"]["files"] = {f"onnx/{name}": facts for name, facts in files.items()}
        (folder / "README.md").write_text(render_stock_card(Path(output).name, report), encoding="utf-8")
        write_json(folder / REPORT_FILE, report)
        return report


def check_size(source: Source) -> None:
    """Raise ValueError for a model that no ONNX file can hold in float32."""
    shapes = source.tensors.shapes
    count = sum(math.prod(shape) for shape in shapes.values())
    # The quantizer is given a tied head as a matrix of its own.
    num_bytes = 4 * (count + (0 if HEAD in shapes else math.prod(shapes.get(EMBEDDING, (0,)))))
    if num_bytes > MAX_FILE_BYTES:
        raise ValueError(
            f"{count:,} parameters in float32 are {num_bytes / 1e9:.1f} GB on the way, and an ONNX file holds 2 GiB: "
            "use --export_stock, whose folder CTranslate2, llama.cpp and vLLM read"
        )


def write_files(folder: Path, config: dict[str, Any]) -> None:
    """Write the ONNX files of the stock export in a folder."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from hf_gpt_scratch.conversion.writers.onnx_graph import give_head_its_own_matrix, gpt2_model

    (folder / "onnx").mkdir()
    model = gpt2_model(SafetensorsFiles(sorted(folder.glob("*.safetensors"))), config)
    (folder / FLOAT_FILE).write_bytes(model.SerializeToString())
    give_head_its_own_matrix(model)
    to_quantize = folder / "onnx" / "to_quantize.onnx"
    to_quantize.write_bytes(model.SerializeToString())
    del model
    logging.disable(logging.WARNING)  # the quantizer advises preprocessing, which is for graphs of other exporters
    try:
        # Unsigned weights: the kernels of older processors saturate at sums of products of signed ones.
        quantize_dynamic(to_quantize, folder / QUANTIZED_FILE, per_channel=True, weight_type=QuantType.QUInt8)
    finally:
        logging.disable(logging.NOTSET)
    to_quantize.unlink()
