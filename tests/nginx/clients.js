#!/usr/bin/env node
// Clients from npm, unchanged: openai, @anthropic-ai/sdk, @langchain/openai, @ai-sdk/openai-compatible with ai.
'use strict';
const assert = require('assert');
const Anthropic = require('@anthropic-ai/sdk').default;
const { createOpenAICompatible } = require('@ai-sdk/openai-compatible');
const { ChatOpenAI, OpenAIEmbeddings } = require('@langchain/openai');
const { embedMany, generateText, streamText } = require('ai');
const OpenAI = require('openai').default;
const { Server, run, until } = require('./server.js');

globalThis.AI_SDK_LOG_WARNINGS = false;
const server = new Server(`
    location /v1/ { mixtral_api main; mixtral_keys off; }
    location /small/ { mixtral_api main; mixtral_keys off; client_max_body_size 100; }
    location /closed/ { mixtral_api main; mixtral_keys off; deny all; }
    location /locked/ { mixtral_api main; mixtral_keys {folder}/keys; }
`);
const HELLO = [{ role: 'user', content: 'Say hello in French.' }];
const GREEDY = { model: undefined, messages: HELLO, max_tokens: 8, temperature: 0 };
const STORY = [{ role: 'user', content: 'Tell me a very long story.' }];
const openai = (at = '/v1', apiKey = 'none') => new OpenAI({ baseURL: server.origin + at, apiKey, maxRetries: 0 });
const anthropic = (at = '', apiKey = 'none') => new Anthropic({ baseURL: server.origin + at, apiKey, maxRetries: 0 });
const langchain = more => new ChatOpenAI({ model, apiKey: 'none', temperature: 0, maxTokens: 8, maxRetries: 0,
    configuration: { baseURL: server.origin + '/v1' }, ...more });
const vercel = (at = '/v1', apiKey = 'none') => createOpenAICompatible({ name: 'mixtral', baseURL: server.origin + at, apiKey,
    includeUsage: true });
let model, expected;

const idle = () => until('the engine is idle', () => server.isIdle(), 5);

async function refused(promise, ...words) {
    const error = await promise.then(() => assert.fail('it was not refused'), problem => problem);
    for (const word of words)
        assert.ok(String(error.message).includes(word), `${word} in ${error.message}`);
    return error;
}

const tests = {
    async 'openai: an answer, and all that its client sends'() {
        const answer = await openai().chat.completions.create({
            ...GREEDY, model, store: false, metadata: { a: 'b' }, parallel_tool_calls: true, service_tier: 'auto',
            reasoning_effort: 'low', user: 'me', n: 1, presence_penalty: 0, frequency_penalty: 0, logit_bias: {}, logprobs: false,
            response_format: { type: 'text' }, seed: 1, stop: null, tool_choice: 'none', tools: [], modalities: ['text'],
            prediction: null, verbosity: 'low', safety_identifier: 'x', prompt_cache_key: 'y', web_search_options: undefined,
        });
        assert.strictEqual(answer.choices[0].message.content, expected);
        assert.strictEqual(answer.choices[0].message.refusal, null);
        assert.strictEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
        assert.ok(answer.id.startsWith('chatcmpl-'));
    },

    async 'openai: streams, models, completions, embeddings'() {
        const client = openai();
        let text = '', usage = null;
        for await (const chunk of await client.chat.completions.create(
            { ...GREEDY, model, stream: true, stream_options: { include_usage: true } })) {
            text += chunk.choices[0]?.delta.content ?? '';
            usage = chunk.usage ?? usage;
        }
        assert.strictEqual(text, expected);
        assert.strictEqual(usage.completion_tokens > 0, true);
        const helper = client.chat.completions.stream({ ...GREEDY, model });
        assert.strictEqual(await helper.finalContent(), expected);
        assert.deepStrictEqual((await client.models.list()).data.map(entry => entry.id), [model]);
        assert.strictEqual((await client.models.retrieve(model)).id, model);
        const completion = await client.completions.create({ model, prompt: 'One, two,', max_tokens: 4, temperature: 0 });
        assert.match(completion.choices[0].text, /three/);
        // its embeddings are asked for in base64
        const [one, again] = (await client.embeddings.create({ model, input: ['one', 'one'] })).data;
        const floats = (await client.embeddings.create({ model, input: 'one', encoding_format: 'float' })).data[0].embedding;
        assert.deepStrictEqual(one.embedding, again.embedding);
        assert.deepStrictEqual(one.embedding, floats.map(Math.fround));
    },

    async 'openai: errors with their messages'() {
        const bad = await refused(openai().chat.completions.create({ ...GREEDY, model, temperature: 'hot' }), 'temperature');
        assert.ok(bad instanceof OpenAI.BadRequestError && bad.param === 'temperature');
        const none = await refused(openai().chat.completions.create({ ...GREEDY, model: 'dance' }), 'dance');
        assert.ok(none instanceof OpenAI.NotFoundError && none.code === 'model_not_found');
        const key = await refused(openai('/locked', 'wrong').models.list(), 'no such API key');
        assert.ok(key instanceof OpenAI.AuthenticationError);
        assert.strictEqual((await openai('/locked', server.key).models.list()).data.length, 1);
        const large = await refused(openai('/small').chat.completions.create({ ...GREEDY, model, user: 'x'.repeat(100) }), 'larger');
        assert.strictEqual(large.status, 413);
        assert.ok(await refused(openai('/closed').models.list(), 'denied') instanceof OpenAI.PermissionDeniedError);
    },

    async 'openai: an abort frees the engine'() {
        const stream = await openai().chat.completions.create({ model, messages: STORY, max_tokens: 3000, stream: true });
        let n = 0;
        for await (const chunk of stream)
            if (chunk.choices[0].delta.content && ++n === 5)
                break;
        await idle();
        const abort = new AbortController();
        const whole = openai().chat.completions.create({ model, messages: STORY, max_tokens: 3000 }, { signal: abort.signal });
        await until('it is at work', async () => !await server.isIdle());
        abort.abort();
        await refused(whole, 'abort');
        await idle();
    },

    async '@anthropic-ai/sdk: an answer, a stream, a count'() {
        const client = anthropic();
        const body = { ...GREEDY, model, system: [{ type: 'text', text: 'Be brief.', cache_control: { type: 'ephemeral' } }],
            metadata: { user_id: 'me' }, top_k: 40, top_p: 1 };
        const message = await client.messages.create(body);
        assert.strictEqual(message.content[0].type, 'text');
        assert.ok(['end_turn', 'max_tokens'].includes(message.stop_reason));
        const stream = client.messages.stream(body);
        let text = '';
        stream.on('text', piece => { text += piece; });
        const final = await stream.finalMessage();
        assert.strictEqual(text, message.content[0].text);
        assert.deepStrictEqual(final.content, message.content);
        assert.strictEqual(final.stop_reason, message.stop_reason);
        assert.strictEqual(final.usage.output_tokens, message.usage.output_tokens);
        const count = await client.messages.countTokens({ model, messages: HELLO, system: body.system });
        assert.strictEqual(count.input_tokens, final.usage.input_tokens + final.usage.cache_read_input_tokens);
        const stop = message.content[0].text.slice(1, 4);
        const stopped = await client.messages.create({ ...body, stop_sequences: [stop] });
        assert.strictEqual(stopped.stop_reason, 'stop_sequence');
        assert.strictEqual(stopped.stop_sequence, stop);
    },

    async '@anthropic-ai/sdk: errors with their messages, and an abort'() {
        const bad = await refused(anthropic().messages.create({ ...GREEDY, model, temperature: 'hot' }), 'temperature');
        assert.ok(bad instanceof Anthropic.BadRequestError);
        assert.strictEqual(bad.error.error.type, 'invalid_request_error');
        const tools = [{ name: 'f', input_schema: { type: 'object' } }];
        await refused(anthropic().messages.create({ ...GREEDY, model, tools }), 'tools');
        assert.ok(await refused(anthropic().messages.create({ ...GREEDY, model: 'dance' }), 'dance') instanceof Anthropic.NotFoundError);
        const key = await refused(anthropic('/locked', 'wrong').messages.create({ ...GREEDY, model }), 'no such API key');
        assert.ok(key instanceof Anthropic.AuthenticationError);
        assert.ok(await anthropic('/locked', server.key).messages.create({ ...GREEDY, model }));
        const large = await refused(anthropic('/small').messages.create({ ...GREEDY, model, system: 'x'.repeat(100) }), 'larger');
        assert.strictEqual(large.error.error.type, 'request_too_large');
        const stream = anthropic().messages.stream({ model, messages: STORY, max_tokens: 3000 });
        await stream.emitted('text');
        stream.abort();
        await refused(stream.finalMessage(), 'abort');
        await idle();
    },

    async '@langchain/openai: answers, streams, embeddings, errors, an abort'() {
        assert.strictEqual((await langchain().invoke(HELLO)).content, expected);
        let text = '', usage;
        for await (const chunk of await langchain({ streamUsage: true }).stream(HELLO)) {
            text += chunk.content;
            usage = chunk.usage_metadata ?? usage;
        }
        assert.strictEqual(text, expected);
        assert.ok(usage.input_tokens > 0);
        const vectors = await new OpenAIEmbeddings({ model, apiKey: 'none', configuration: { baseURL: server.origin + '/v1' } })
            .embedDocuments(['one', 'two']);
        assert.deepStrictEqual(vectors.map(vector => vector.length), [576, 576]);
        await refused(langchain({ model: 'dance' }).invoke(HELLO), 'dance');
        let n = 0;
        for await (const chunk of await langchain({ maxTokens: 3000 }).stream(STORY))
            if (chunk.content && ++n === 5)
                break;
        await idle();
    },

    async '@ai-sdk/openai-compatible: answers, streams, embeddings, errors, an abort'() {
        const more = { messages: HELLO, temperature: 0, maxOutputTokens: 8, maxRetries: 0 };
        const whole = await generateText({ model: vercel()(model), ...more });
        assert.strictEqual(whole.text, expected);
        assert.ok(whole.usage.inputTokens > 0 && whole.usage.outputTokens > 0);
        const result = streamText({ model: vercel()(model), ...more });
        let text = '';
        for await (const piece of result.textStream)
            text += piece;
        assert.strictEqual(text, expected);
        assert.strictEqual((await result.usage).outputTokens, whole.usage.outputTokens);
        const { embeddings } = await embedMany({ model: vercel().textEmbeddingModel(model), values: ['one', 'two'] });
        assert.deepStrictEqual(embeddings.map(vector => vector.length), [576, 576]);
        await refused(generateText({ model: vercel()('dance'), ...more }), 'dance');
        await refused(generateText({ model: vercel('/locked', 'wrong')(model), ...more }), 'no such API key');
        const abort = new AbortController();
        const long = streamText({ model: vercel()(model), messages: STORY, maxOutputTokens: 3000, abortSignal: abort.signal });
        let n = 0;
        for await (const part of long.fullStream)
            if (part.type === 'text-delta' && ++n === 5)
                abort.abort();
        await idle();
    },
};

run(tests, async () => {
    await server.start();
    model = (await openai().models.list()).data[0].id;
    expected = (await (await fetch(server.origin + '/v1/chat/completions', { method: 'POST', body: JSON.stringify(GREEDY) })).json())
        .choices[0].message.content;
}, () => server.stop());
