// OpenAI's client for Node.
import { createRequire } from "node:module";
const OpenAI = createRequire(process.env.CONFORMANCE_NODE_MODULES + "/")("openai").OpenAI;
const env = (name) => process.env["CONFORMANCE_" + name];
const text = new OpenAI({ baseURL: env("DECODER_URL") + "/v1", apiKey: "none", maxRetries: 0 });
const sentences = new OpenAI({ baseURL: env("ENCODER_URL") + "/v1", apiKey: "none", maxRetries: 0 });
const [model, encoder] = [env("DECODER"), env("ENCODER")];
const messages = [{ role: "user", content: "What is the capital of France?" }];
const must = (holds, said) => { if (!holds) throw new Error("not as expected: " + JSON.stringify(said)); };

async function tried(feature, run) {
  let [ok, remark] = [true, ""];
  try { remark = (await run()) ?? ""; } catch (error) { ok = false; remark = String(error).slice(0, 300); }
  console.log(JSON.stringify({ feature, ok, remark }));
}

await tried("models", async () => { for await (const found of text.models.list()) must(found.id === model, found); });
await tried("chat", async () => {
  const made = await text.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16 });
  must(made.choices[0].message.content.includes("Paris"), made);
});
await tried("chat, streamed", async () => {
  let said = "";
  const stream = await text.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16, stream: true });
  for await (const chunk of stream) said += chunk.choices[0]?.delta?.content ?? "";
  must(said.includes("Paris"), said);
});
await tried("structured output", async () => {
  const schema = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false };
  const response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  const made = await text.chat.completions.create({ model, messages, temperature: 0, max_tokens: 40, response_format });
  must(["Paris", "Rome"].includes(JSON.parse(made.choices[0].message.content).city), made);
});
await tried("text completion", async () => {
  const made = await text.completions.create({ model, prompt: "The capital of France is", temperature: 0, max_tokens: 4 });
  must(made.choices[0].text.includes("Paris"), made);
});
await tried("embeddings", async () => {
  const made = await sentences.embeddings.create({ model: encoder, input: ["a cat", "a kitten"] });
  must(made.data.length === 2 && made.data[1].embedding.length === 384, made.usage);
});
await tried("responses", async () => {
  const made = await text.responses.create({ model, input: "What is the capital of France?", temperature: 0, max_output_tokens: 16 });
  must(made.output_text.includes("Paris"), made);
});
await tried("responses, streamed", async () => {
  let said = "";
  const stream = await text.responses.create({ model, input: "What is the capital of France?", temperature: 0, max_output_tokens: 16, stream: true });
  for await (const event of stream) if (event.type === "response.output_text.delta") said += event.delta;
  must(said.includes("Paris"), said);
});
await tried("errors", async () => {
  try { await text.chat.completions.create({ model: "other", messages }); } catch (error) { must(error.status === 404, error); return; }
  throw new Error("an unknown model was no error");
});
