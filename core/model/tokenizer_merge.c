/*
 * tokenizer_merge.c: the loop that both families of tokenizers are: of all pairs of neighbouring symbols that
 * make a piece, the best one becomes a symbol, until there is none.
 *
 * Candidates lie in a binary heap, so that n symbols take O(n log n). A merge leaves candidates behind that are
 * no more: a candidate counts only while its left symbol still makes a pair of that priority. (Should it be
 * another pair of the same priority, that pair's own candidate would be the next to come up.)
 * A merger belongs to one call; its memory is used again from text to text.
 */
#include <stdlib.h>
#include "tokenizer_internal.h"

#define WORK_BETWEEN_LOOKS 4096 /* pairs looked up, or texts begun */

/* Makes room for `count` + 1 elements. */
static mx_status reserve(void **array, size_t count, size_t *capacity, size_t size, mx_error *error)
{
    size_t wanted = *capacity ? *capacity * 2 : 64;
    void *grown;

    if (count < *capacity)
        return MX_OK;
    grown = wanted <= SIZE_MAX / size ? realloc(*array, wanted * size) : NULL;
    if (!grown)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the tokenizer");
    *array = grown;
    *capacity = wanted;
    return MX_OK;
}

static mx_status poll_cancelled(mx_merger *m, mx_error *error)
{
    if (++m->work < WORK_BETWEEN_LOOKS)
        return MX_OK;
    m->work = 0;
    if (m->cancelled && atomic_load_explicit(m->cancelled, memory_order_relaxed))
        return mx_fail(error, MX_CANCELLED, NULL, "the request was cancelled");
    return MX_OK;
}

/* ---- The heap: the smallest key first ---- */

static mx_status heap_push(mx_merger *m, uint64_t key, mx_error *error)
{
    void *heap = m->heap;
    mx_status status = reserve(&heap, m->heap_count, &m->heap_capacity, sizeof *m->heap, error);
    size_t i;

    m->heap = heap;
    if (status != MX_OK)
        return status;
    for (i = m->heap_count++; i > 0 && m->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = key;
    return MX_OK;
}

static uint64_t heap_pop(mx_merger *m)
{
    uint64_t top = m->heap[0], last = m->heap[--m->heap_count];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < m->heap_count) {
        if (child + 1 < m->heap_count && m->heap[child + 1] < m->heap[child])
            child++;
        if (m->heap[child] >= last)
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

/* ---- Symbols ---- */

void mx_merger_begin(mx_merger *m, const char *text)
{
    m->text = text;
    m->n_symbols = 0;
    m->heap_count = 0;
}

mx_status mx_merger_add(mx_merger *m, size_t bytes, int32_t id, mx_error *error)
{
    void *symbols = m->symbols;
    mx_status status = reserve(&symbols, m->n_symbols, &m->symbol_capacity, sizeof *m->symbols, error);
    int32_t i = (int32_t)m->n_symbols;
    uint32_t start;

    m->symbols = symbols;
    if (status != MX_OK)
        return status;
    start = i > 0 ? m->symbols[i - 1].start + m->symbols[i - 1].bytes : 0;
    if (i > 0)
        m->symbols[i - 1].next = i;
    m->symbols[i] = (mx_symbol){start, (uint32_t)bytes, i - 1, -1, id, -1, 0};
    m->n_symbols++;
    return MX_OK;
}

/* Finds out what a symbol makes with the next one. */
static mx_status consider(mx_merger *m, int32_t i, mx_error *error)
{
    mx_symbol *left = &m->symbols[i];
    mx_status status = poll_cancelled(m, error);

    left->pair = -1;
    if (status != MX_OK || left->next < 0)
        return status;
    m->pair(m, left, &m->symbols[left->next]);
    return left->pair < 0 ? MX_OK : heap_push(m, (uint64_t)left->priority << 32 | (uint32_t)i, error);
}

/* Symbol i takes the next one over. */
static mx_status merge(mx_merger *m, int32_t i, mx_error *error)
{
    mx_symbol *left = &m->symbols[i], *right = &m->symbols[left->next];
    mx_status status = MX_OK;

    left->bytes += right->bytes;
    left->id = left->pair;
    left->next = right->next;
    right->bytes = 0;
    if (left->next >= 0)
        m->symbols[left->next].prev = i;
    if (left->prev >= 0)
        status = consider(m, left->prev, error);
    return status == MX_OK ? consider(m, i, error) : status;
}

mx_status mx_merger_run(mx_merger *m, mx_error *error)
{
    mx_status status = poll_cancelled(m, error);

    for (size_t i = 0; i + 1 < m->n_symbols && status == MX_OK; i++)
        status = consider(m, (int32_t)i, error);
    while (m->heap_count > 0 && status == MX_OK) {
        uint64_t key = heap_pop(m);
        int32_t i = (int32_t)(uint32_t)key;
        const mx_symbol *left = &m->symbols[i];

        if (left->bytes > 0 && left->pair >= 0 && left->priority == key >> 32)
            status = merge(m, i, error);
    }
    return status;
}

void mx_merger_free(mx_merger *m)
{
    free(m->symbols);
    free(m->heap);
}
