
/*
 * The server: its models, and an answer as a stream of pieces.  A Failure's message is for the user; its status is HTTP's, or 0.
 */

class Failure extends Error {
    constructor(message, status) {
        super(message);
        this.status = status;
    }
}

async function call(path, more) {
    const headers = {"Content-Type": "application/json"};
    const key = kept("key", "");
    if (key)
        headers.Authorization = "Bearer " + key;
    let response;
    try {
        response = await fetch(new URL(path, API), {headers, ...more});
    } catch (error) {
        if (error.name === "AbortError")
            throw error;
        throw new Failure(word("dead"), 0);
    }
    if (response.ok)
        return response;
    const answer = await response.json().catch(() => null);
    throw new Failure(answer?.error?.message ?? word("strange", response.status), response.status);
}

async function listModels() {
    return (await (await call("models")).json()).data.map(model => model.id);
}

/* The data of server-sent events */
async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const {value, done} = await reader.read();
        if (done)
            return;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks)
            for (const line of block.split("\n"))
                if (line.startsWith("data: "))
                    yield line.slice(6);
    }
}

/* Calls onPiece(text) with each piece; gives {finish, usage, timings}. */
async function complete(body, signal, onPiece) {
    const end = {finish: null, usage: null, timings: null};
    const response = await call("chat/completions", {
        method: "POST", signal,
        body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}, timings: true}),
    });
    try {
        for await (const data of events(response.body)) {
            if (data === "[DONE]")
                return end;
            const chunk = JSON.parse(data), choice = chunk.choices?.[0];
            if (chunk.error)
                throw new Failure(chunk.error.message, 0);
            if (choice?.delta.content)
                onPiece(choice.delta.content);
            end.finish = choice?.finish_reason ?? end.finish;
            end.usage = chunk.usage ?? end.usage;
            end.timings = chunk.timings ?? end.timings;
        }
    } catch (error) {
        if (error.name === "AbortError" || error instanceof Failure)
            throw error;
        console.error(error); /* a lost connection, or no JSON: for the user, both are the same */
    }
    throw new Failure(word("broken"), 0);
}
