// Node's clients: openai and the AI SDK ask a server, and print what they got as one JSON object.
// node node_clients.mjs URL openai|ai     (URL up to /v1; the server's replies are those of the test)
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, Output, tool, stepCountIs } from "ai";
import { z } from "zod";

const [url, which] = process.argv.slice(2);
const asked = "Is it warm in Rome?";
const messages = [{ role: "user", content: asked }];
const Answer = z.object({ city: z.string(), degrees: z.number().int() });
const guidance = { strength: 2, heads: { kind: 1 } };
const found = {};

async function openai() {
  const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const chat = client.chat.completions;
  found.chat = (await chat.create({ model: "script", messages, guidance })).choices[0].message.content;
  found.stream = "";
  for await (const chunk of await chat.create({ model: "script:kinder", messages, stream: true }))
    found.stream += chunk.choices[0].delta.content ?? "";
  const one = await chat.create({ model: "script", messages, logprobs: true, top_logprobs: 2 });
  found.logprobs = one.choices[0].logprobs.content.map((entry) => entry.top_logprobs.length);
  const format = zodResponseFormat(Answer, "answer");
  found.typed = (await chat.parse({ model: "script", messages, response_format: format })).choices[0].message.parsed;
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const stream = chat.stream({ model: "script", messages, tools });
  const call = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
  found.called = [call.function.name, call.function.arguments];
  found.response = (await client.responses.create({ model: "script", input: asked })).output_text;
  found.events = [];
  for await (const event of await client.responses.create({ model: "script", input: asked, stream: true }))
    found.events.push(event.type);
}

async function ai() {
  const ours = createOpenAICompatible({
    name: "trimtab", baseURL: url, apiKey: "none", supportsStructuredOutputs: true,
  });
  const model = ours("script");
  found.chat = (await generateText({ model, prompt: asked, providerOptions: { trimtab: { guidance } } })).text;
  found.stream = "";
  for await (const piece of streamText({ model: ours("script:kinder"), prompt: asked }).textStream)
    found.stream += piece;
  const output = Output.object({ schema: Answer });
  found.typed = (await generateText({ model, prompt: asked, output })).output;
  const tools = {
    weather: tool({
      description: "Tells the weather of a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => `30 degrees in ${city}`,
    }),
  };
  const options = { model, prompt: asked, tools, stopWhen: stepCountIs(2) };
  found.called = (await generateText(options)).text;
  found.called_in_stream = await streamText(options).text;
  const responses = createOpenAI({ baseURL: url, apiKey: "none" })("script");
  found.response = (await generateText({ ...options, model: responses })).text;
  found.response_in_stream = await streamText({ ...options, model: responses }).text;
  found.typed_response = (await generateText({ model: responses, prompt: asked, output })).output;
}

await { openai, ai }[which]();
console.log(JSON.stringify(found));
