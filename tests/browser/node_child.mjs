// Loads exported folders with transformers.js in Node, makes the calls it is told to, and prints what came of them.
//
//     node node_child.mjs MODULES < ORDER > REPORT
//
// MODULES is the node_modules folder that has @huggingface/transformers. ORDER is a list of {"name": of the folder,
// "dtype": "fp32" or "q8", "texts": each a text or a batch of them, "options": of generate}. REPORT is a list with one
// object for each of the texts: its "ids", and the "new" rows of ids with their "texts", or the "error". Of a folder
// whose model is refused it has the "error" for each text.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const file = `${process.argv[2]}/@huggingface/transformers/dist/transformers.node.mjs`;
const { AutoModelForCausalLM, AutoTokenizer, LogLevel, env } = await import(pathToFileURL(file));
env.allowRemoteModels = false;
env.logLevel = LogLevel.NONE;

async function answer(tokenizer, model, text, options) {
  const inputs = tokenizer(text, { padding: true });
  const ids = inputs.input_ids.tolist().map((row) => row.map(Number));
  try {
    const output = await model.generate({ ...inputs, ...options });
    const rows = output.tolist().map((row) => row.map(Number).slice(ids[0].length));
    return { ids, new: rows, texts: tokenizer.batch_decode(rows, { skip_special_tokens: true }) };
  } catch (error) {
    return { ids, error: String(error) };
  }
}

const report = [];
for (const { name, dtype, texts, options } of JSON.parse(readFileSync(0, "utf-8"))) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  let model;
  try {
    model = await AutoModelForCausalLM.from_pretrained(name, { dtype });
  } catch (error) {
    report.push(...texts.map(() => ({ error: String(error) })));
    continue;
  }
  for (const text of texts) report.push(await answer(tokenizer, model, text, options));
  await model.dispose();
}
console.log(JSON.stringify(report));
