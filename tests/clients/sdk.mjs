// What a program with the official TypeScript SDK does, through whatever ANTHROPIC_BASE_URL names. It prints what it
// got as one JSON object; tests/e2e/test_clients_typescript.py decides whether that is right.
import Anthropic from "@anthropic-ai/sdk";

const model = process.env.ANTHROPIC_MODEL;
const question = [{ role: "user", content: "What does a signal box do?" }];
const weather = {
  name: "weather",
  description: "The weather.",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const client = new Anthropic({ maxRetries: 0 });

const scenarios = {
  async message() {
    const reply = await client.messages.create({ model, max_tokens: 256, messages: question });
    return { text: reply.content[0].text, usage: reply.usage, requestId: reply._request_id };
  },

  async stream() {
    const pieces = [];
    const stream = client.messages.stream({ model, max_tokens: 256, messages: question });
    stream.on("text", (piece) => pieces.push(piece));
    const reply = await stream.finalMessage();
    return { text: reply.content[0].text, pieces, usage: reply.usage };
  },

  async tools() {
    const messages = [{ role: "user", content: "How is the weather in Bern?" }];
    const common = { model, max_tokens: 2048, tools: [weather], thinking: { type: "adaptive" } };
    const asked = await client.messages.stream({ ...common, messages }).finalMessage();
    const use = asked.content.at(-1);
    messages.push(
      { role: "assistant", content: asked.content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "rain" }] },
    );
    const answered = await client.messages.create({ ...common, messages });
    return { kinds: asked.content.map((block) => block.type), input: use.input, ended: answered.stop_reason };
  },

  async countTokens() {
    return await client.messages.countTokens({ model, messages: question });
  },

  async models() {
    const ids = [];
    for await (const found of client.models.list({ limit: 2 })) ids.push(found.id);
    return { ids };
  },

  async error() {
    const made = process.env.WRONG_KEY ? new Anthropic({ maxRetries: 0, authToken: process.env.WRONG_KEY }) : client;
    try {
      await made.messages.create({ model, max_tokens: 16, messages: question });
    } catch (error) {
      return { name: error.constructor.name, status: error.status, requestId: error.requestID, body: error.error };
    }
    return { name: "none" };
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
