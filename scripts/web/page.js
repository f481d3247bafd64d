// The controls of the page, and what they show. The model is in worker.js, so that the page answers while it computes.

const element = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const ask = (action, given = {}) => worker.postMessage({ action, ...given });

function show(message, isWrong = false) {
  element("status").textContent = message;
  element("status").classList.toggle("wrong", isWrong);
}

function setBusy(isWriting) {
  element("write").disabled = isWriting;
  element("load").disabled = isWriting;
  element("stop").disabled = !isWriting;
}

const answers = {
  progress({ loaded, total }) {
    element("progress").value = (100 * loaded) / total;
    show(`Loading: ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
  },
  loaded({ context }) {
    element("progress").hidden = true;
    element("load").disabled = false;
    element("controls").disabled = false;
    element("new").max = context;
    show("Ready.");
    ask("count", { prompt: element("prompt").value });
  },
  count({ tokens, context }) {
    element("count").textContent = `${tokens} of ${context} tokens`;
  },
  text({ text }) {
    element("text").textContent += text;
  },
  done({ tokens, seconds, reason }) {
    setBusy(false);
    show(`Done, ${reason}: ${tokens} new tokens, ${(tokens / seconds).toFixed(1)} a second.`);
  },
  error({ message }) {
    setBusy(false);
    element("progress").hidden = true;
    show(message, true);
  },
};
worker.onmessage = ({ data: { answer, ...given } }) => answers[answer](given);
worker.onerror = () => answers.error({ message: "The worker could not be started: reload the page." });

element("loading").onsubmit = (event) => {
  event.preventDefault();
  element("load").disabled = true;
  element("controls").disabled = true;
  element("progress").hidden = false;
  element("progress").removeAttribute("value"); // moving, until the sizes are known
  show("Loading...");
  ask("load", { name: element("model").value.trim(), dtype: element("weights").value });
};

element("prompt").oninput = () => ask("count", { prompt: element("prompt").value });

element("writing").onsubmit = (event) => {
  event.preventDefault();
  setBusy(true);
  element("text").textContent = element("prompt").value;
  show("Writing...");
  ask("write", {
    prompt: element("prompt").value,
    newTokens: element("new").valueAsNumber,
    temperature: element("temperature").valueAsNumber,
    topK: element("topk").valueAsNumber,
  });
};

element("stop").onclick = () => ask("stop");

element("model").value = new URLSearchParams(location.search).get("model") ?? element("model").value;
