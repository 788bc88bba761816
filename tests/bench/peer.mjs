// peer.mjs MODEL THREADS PROMPT TOKENS: llama.cpp's CPU backend on the same file, through node-llama-cpp's prebuilt library.
// Prints {"prefill_tokens_per_s", "decode_tokens_per_s"} in one line, measured as `mixtral bench` measures: random ids, once unmeasured.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.NODE_PACKAGES + "/");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const [path, threads, nPrompt, nTokens] = [process.argv[2], ...process.argv.slice(3).map(Number)];

const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: path, useMmap: true });
const context = await model.createContext({ contextSize: nPrompt + nTokens + 128, batchSize: 512, threads: { ideal: threads, min: threads } });
const sequence = context.getSequence();

let state = 42n;
function randomId() {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number((state >> 33n) % BigInt(model.fileInfo.metadata.tokenizer.ggml.tokens.length));
}

const seconds = () => Number(process.hrtime.bigint()) / 1e9;

await sequence.evaluateWithoutGeneratingNewTokens(Array.from({ length: 64 }, randomId));
await sequence.clearHistory();

const prompt = Array.from({ length: nPrompt }, randomId);
let begin = seconds();
await sequence.evaluateWithoutGeneratingNewTokens(prompt);
const prefill = nPrompt / (seconds() - begin);

begin = seconds();
for (let i = 0; i < nTokens; i++)
    for await (const _ of sequence.evaluate([randomId()], { temperature: 0, yieldEogToken: true })) break;
const decode = nTokens / (seconds() - begin);

console.log(JSON.stringify({ prefill_tokens_per_s: prefill, decode_tokens_per_s: decode }));
process.exit(0);
