// The model in a thread of its own. Messages in: load, count, write, stop. Out: progress, loaded, count, text, done, error.

const LIBRARY = "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4.3.1/dist/transformers.min.js";
const HUB = ["https://huggingface.co/", "{model}/resolve/{revision}/"];

let library, tokenizer, model, stopping;
const tell = (answer, given = {}) => self.postMessage({ answer, ...given });

async function importLibrary() {
  try {
    library ??= await import(LIBRARY);
  } catch {
    throw new Error(`transformers.js could not be loaded from ${LIBRARY}: is there a network?`);
  }
}

async function load({ name, dtype }) {
  await importLibrary();
  const { AutoModelForCausalLM, AutoTokenizer, InterruptableStoppingCriteria, env } = library;
  const isFolder = !name.includes("/");
  [env.remoteHost, env.remotePathTemplate] = isFolder ? [new URL(".", self.location).href, "{model}/"] : HUB;
  // The library's cache never asks whether a file has changed. A folder here is left to the browser's own cache.
  env.useBrowserCache = !isFolder;
  await model?.dispose();
  model = undefined;
  try {
    tokenizer = await AutoTokenizer.from_pretrained(name);
    model = await AutoModelForCausalLM.from_pretrained(name, {
      dtype,
      device: "wasm",
      progress_callback: ({ status, loaded, total }) => {
        if (status === "progress_total") tell("progress", { loaded, total });
      },
    });
  } catch (error) {
    throw new Error(`${name} could not be loaded, it needs the files that --export_onnx writes: ${error.message}`);
  }
  // A turn for other messages before each token: without it, "stop" would be read when the text is at its end.
  const forward = model.forward.bind(model);
  model.forward = async (inputs) => {
    await new Promise((resolve) => setTimeout(resolve));
    return forward(inputs);
  };
  stopping = new InterruptableStoppingCriteria();
  tell("loaded", { context: context() });
}

const context = () => model.config.n_positions;

// A text begins at the end of another one where nothing is given.
const encode = (prompt) => tokenizer(prompt || tokenizer.bos_token);

function count({ prompt }) {
  tell("count", { tokens: encode(prompt).input_ids.dims[1], context: context() });
}

async function write({ prompt, newTokens, temperature, topK }) {
  const inputs = encode(prompt);
  const used = inputs.input_ids.dims[1];
  const room = context() - used;
  if (room < 1) {
    throw new Error(
      `The prompt has ${used} tokens, and the context of this model holds ${context()} with the new ones: shorten it.`
    );
  }
  stopping.reset();
  const streamer = new library.TextStreamer(tokenizer, {
    skip_prompt: true,
    callback_function: (text) => tell("text", { text }),
  });
  const start = performance.now();
  const output = await model.generate({
    ...inputs,
    max_new_tokens: Math.min(newTokens, room),
    do_sample: temperature > 0,
    temperature: temperature || 1,
    top_k: topK,
    stopping_criteria: stopping,
    streamer,
  });
  const tokens = output.dims[1] - used;
  tell("done", { tokens, seconds: (performance.now() - start) / 1000, reason: whyEnded(tokens, newTokens, room) });
}

function whyEnded(tokens, newTokens, room) {
  if (stopping.interrupted) return "stopped";
  if (tokens === newTokens) return "as long as asked";
  return tokens === room ? `the context of ${context()} tokens is full` : "the model ended its text";
}

function stop() {
  stopping.interrupt();
}

const actions = { load, count, write, stop };
self.onmessage = async ({ data: { action, ...given } }) => {
  try {
    await actions[action](given);
  } catch (error) {
    tell("error", { message: error.message });
  }
};
