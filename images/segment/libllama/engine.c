// What a segment asks of libllama, with numbers and pointers alone, so that Python need not know the layout of libllama's structures:
// the compiler that builds this file reads it from the header of the very libllama that is built beside it.
//
//   cc -shared -fPIC -O2 -Wall -Werror -I include engine.c -o lib/libsplitinference-llama.so -L lib -lllama -lggml -lggml-base
#define _GNU_SOURCE
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "llama.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static __thread char problem[1024];

static void note(const char * text) { snprintf(problem, sizeof problem, "%s", text); }

// libllama says why in its log: the last error of this thread is kept, the rest is dropped.
static void on_log(enum ggml_log_level level, const char * text, void * unused) {
    (void) unused;
    if (level != GGML_LOG_LEVEL_ERROR || strstr(text, "failed to load model")) return;
    note(text);
    size_t length = strlen(problem);
    while (length && problem[length - 1] == '\n') problem[--length] = 0;
}

EXPORT const char * si_problem(void) { return problem; }

EXPORT const char * si_version(void) { return llama_version(); }

// Load ggml's backends from `folder` and see that libllama is laid out as the header says. 0, or -1 with a problem.
EXPORT int si_init(const char * folder) {
    llama_log_set(on_log, NULL);
    ggml_log_set(on_log, NULL);
    const struct llama_context_params c = llama_context_default_params();
    const struct llama_model_params m = llama_model_default_params();
    if (c.n_batch != 2048 || c.n_ubatch != 512 || c.n_seq_max != 1 || c.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_AUTO || c.type_k != GGML_TYPE_F16 ||
        c.type_v != GGML_TYPE_F16 || !c.offload_kqv || !c.swa_full || c.kv_unified || c.ctx_other || !m.use_extra_bufts || m.vocab_only ||
        m.no_alloc) {
        note("libllama was built from another header than this library: their structures differ");
        return -1;
    }
    if (ggml_backend_reg_count() == 0) ggml_backend_load_all_from_path(folder);
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        note("ggml has no CPU backend for this processor");
        return -1;
    }
    llama_backend_init();
    return 0;
}

// ---- a GGUF file that is put together from pieces: of memory (fd -1), of zeros (fd -2) or of files

struct si_extent {
    uint64_t at, length, offset;
    const char * memory;
    int64_t fd;
};

struct cookie {
    const struct si_extent * extents;
    size_t count;
    uint64_t position, size;
};

static ssize_t cookie_read(void * self, char * buffer, size_t wanted) {
    struct cookie * c = self;
    size_t low = 0, high = c->count;
    while (low < high) {  // the first extent that ends behind the position; they follow one another without gaps
        size_t middle = (low + high) / 2;
        if (c->extents[middle].at + c->extents[middle].length > c->position) high = middle;
        else low = middle + 1;
    }
    if (low == c->count) return 0;
    const struct si_extent * e = &c->extents[low];
    const uint64_t within = c->position - e->at;
    if (wanted > e->length - within) wanted = e->length - within;
    ssize_t got = (ssize_t) wanted;
    if (e->fd == -2) memset(buffer, 0, wanted);
    else if (e->fd < 0) memcpy(buffer, e->memory + within, wanted);
    else {
        do got = pread((int) e->fd, buffer, wanted, (off_t) (e->offset + within));
        while (got < 0 && errno == EINTR);
    }
    if (got > 0) c->position += (uint64_t) got;
    return got;
}

static int cookie_seek(void * self, off64_t * offset, int whence) {
    struct cookie * c = self;
    const off64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? (off64_t) c->position : (off64_t) c->size;
    if (from + *offset < 0) return -1;
    *offset += from;
    c->position = (uint64_t) *offset;
    return 0;
}

// ---- a model and its context

struct si_engine {
    struct llama_model * model;
    struct llama_context * context;
    struct ggml_threadpool * pool;
    void (*free_pool)(struct ggml_threadpool *);
    char boundary[64];  // the tensor that leaves the last block; empty: logits are wanted
    float * hidden;     // where it goes
    int64_t room, got;  // bytes
    int32_t * ones;
    llama_seq_id ** sequences;
};

// Copies the boundary's tensor and ends the graph there: a norm and a head that are not this segment's would follow.
static bool on_tensor(struct ggml_tensor * tensor, bool ask, void * self) {
    struct si_engine * engine = self;
    const bool wanted = !strcmp(tensor->name, engine->boundary);
    if (ask || !wanted) return ask ? wanted : true;
    engine->got = (int64_t) ggml_nbytes(tensor);
    if (tensor->type == GGML_TYPE_F32 && engine->hidden && engine->got <= engine->room)
        ggml_backend_tensor_get(tensor, engine->hidden, 0, (size_t) engine->got);
    return false;
}

EXPORT void si_close(struct si_engine * engine) {
    if (!engine) return;
    if (engine->context) llama_free(engine->context);
    if (engine->pool) engine->free_pool(engine->pool);
    if (engine->model) llama_model_free(engine->model);
    free(engine->ones);
    free(engine->sequences);
    free(engine);
}

static void use_threads(struct si_engine * engine, int threads) {
    if (threads < 2) return;  // without a pool of its own ggml would start its threads anew for each graph
    ggml_backend_reg_t cpu = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    struct ggml_threadpool * (*make)(struct ggml_threadpool_params *);
    *(void **) &make = ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_new");
    *(void **) &engine->free_pool = ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_free");
    if (!make || !engine->free_pool) return;
    struct ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = 0;  // others need the processor
    engine->pool = make(&params);
    if (engine->pool) llama_attach_threadpool(engine->context, engine->pool, NULL);
}

// The file's model, with a context for `cells` tokens of at most `sequences` sequences and `rows` rows at once, of which `outputs` give
// logits. With `boundary` the hidden states behind the last block are given instead. NULL with a problem.
EXPORT struct si_engine * si_open(const struct si_extent * extents, size_t count, uint32_t cells, uint32_t sequences, uint32_t rows,
                                  uint32_t outputs, int32_t threads, int boundary) {
    problem[0] = 0;
    struct si_engine * engine = calloc(1, sizeof *engine);
    struct cookie cookie = {extents, count, 0, count ? extents[count - 1].at + extents[count - 1].length : 0};
    const cookie_io_functions_t functions = {.read = cookie_read, .seek = cookie_seek};
    FILE * file = fopencookie(&cookie, "rb", functions);
    if (!engine || !file) {
        note("no memory");
        if (file) fclose(file);
        free(engine);
        return NULL;
    }
    setvbuf(file, NULL, _IOFBF, 1 << 20);
    struct llama_model_params m = llama_model_default_params();
    m.load_mode = LLAMA_LOAD_MODE_NONE;
    engine->model = llama_model_load_from_file_ptr(file, m);
    fclose(file);
    if (!engine->model) {
        if (!problem[0]) note("libllama cannot load the model");
        si_close(engine);
        return NULL;
    }
    struct llama_context_params c = llama_context_default_params();
    c.n_ctx = cells;
    c.n_batch = c.n_ubatch = rows;
    c.n_seq_max = sequences;
    c.n_outputs_max = outputs;
    c.n_threads = c.n_threads_batch = threads;
    c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;  // values are then stored as keys are, a row for each token
    c.kv_unified = true;                                // one pool of cells: what one sequence does not need, another may have
    c.no_perf = true;
    if (boundary) {
        snprintf(engine->boundary, sizeof engine->boundary, "l_out-%d", llama_model_n_layer(engine->model) - 1);
        c.cb_eval = on_tensor;
        c.cb_eval_user_data = engine;
    }
    engine->context = llama_init_from_model(engine->model, c);
    engine->ones = malloc(rows * sizeof *engine->ones);
    engine->sequences = malloc(rows * sizeof *engine->sequences);
    if (!engine->context || !engine->ones || !engine->sequences) {
        if (!problem[0]) note("libllama cannot make a context");
        si_close(engine);
        return NULL;
    }
    for (uint32_t i = 0; i < rows; i++) engine->ones[i] = 1;
    use_threads(engine, threads);
    return engine;
}

// Run rows: of token ids, or of hidden states. 0, or another number with a problem. At a boundary `hidden` gets [rows, width].
EXPORT int si_decode(struct si_engine * engine, int32_t rows, int32_t * tokens, float * embd, int32_t * positions, int32_t * sequences,
                     int8_t * wanted, float * hidden) {
    problem[0] = 0;
    for (int32_t i = 0; i < rows; i++) engine->sequences[i] = &sequences[i];
    const struct llama_batch batch = {rows, tokens, embd, positions, engine->ones, engine->sequences, wanted};
    engine->hidden = hidden;
    engine->room = (int64_t) sizeof(float) * rows * llama_model_n_embd(engine->model);
    engine->got = 0;
    const int failed = llama_decode(engine->context, batch);
    engine->hidden = NULL;
    if (failed) {
        if (!problem[0]) snprintf(problem, sizeof problem, "llama_decode gives %d", failed);
        return failed;
    }
    if (engine->boundary[0] && engine->got != engine->room) {
        snprintf(problem, sizeof problem, "%s has %lld bytes, expected %lld", engine->boundary, (long long) engine->got, (long long) engine->room);
        return -1;
    }
    return 0;
}

// Logits behind this row of the last batch, [vocabulary]; NULL where they were not asked for.
EXPORT const float * si_logits(struct si_engine * engine, int32_t row) { return llama_get_logits_ith(engine->context, row); }

EXPORT int64_t si_vocabulary(struct si_engine * engine) { return llama_vocab_n_tokens(llama_model_get_vocab(engine->model)); }
EXPORT int64_t si_width(struct si_engine * engine) { return llama_model_n_embd(engine->model); }
EXPORT int64_t si_bytes(struct si_engine * engine) { return (int64_t) llama_model_size(engine->model); }

// ---- the KV of sequences

// Forget tokens from this position on. 0, or -1 where libllama cannot.
EXPORT int si_truncate(struct si_engine * engine, int32_t sequence, int32_t position) {
    return llama_memory_seq_rm(llama_get_memory(engine->context), sequence, position, -1) ? 0 : -1;
}

// Let another sequence have the tokens [from, to), too. They share the cells.
EXPORT void si_share(struct si_engine * engine, int32_t source, int32_t target, int32_t from, int32_t to) {
    llama_memory_seq_cp(llama_get_memory(engine->context), source, target, from, to);
}

EXPORT int32_t si_last(struct si_engine * engine, int32_t sequence) {
    return llama_memory_seq_pos_max(llama_get_memory(engine->context), sequence);
}

EXPORT size_t si_state_bytes(struct si_engine * engine, int32_t sequence) { return llama_state_seq_get_size(engine->context, sequence); }

EXPORT size_t si_state(struct si_engine * engine, int32_t sequence, uint8_t * target, size_t size) {
    problem[0] = 0;
    return llama_state_seq_get_data(engine->context, target, size, sequence);
}

EXPORT size_t si_set_state(struct si_engine * engine, int32_t sequence, const uint8_t * source, size_t size) {
    problem[0] = 0;
    return llama_state_seq_set_data(engine->context, source, size, sequence);
}

// ---- rows of a quantized matrix

// `count` values of this ggml type as float32. 0, or -1 for a type that has no such function.
EXPORT int si_dequantize(int32_t type, const void * source, float * target, int64_t count) {
    if (type == GGML_TYPE_F32) {
        memcpy(target, source, (size_t) count * sizeof(float));
        return 0;
    }
    if (type < 0 || type >= GGML_TYPE_COUNT) return -1;
    const struct ggml_type_traits * traits = ggml_get_type_traits((enum ggml_type) type);
    if (!traits || !traits->to_float) return -1;
    traits->to_float(source, target, count);
    return 0;
}

// ---- for tests and conversion

// Write `source` as `target` with the types of this ftype (llama.h). 0, or another number with a problem.
EXPORT int si_quantize(const char * source, const char * target, int32_t ftype, int32_t threads) {
    problem[0] = 0;
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = (enum llama_ftype) ftype;
    params.nthread = threads;
    params.allow_requantize = true;  // benches compare encodings of whatever file there is
    return (int) llama_model_quantize(source, target, &params);
}
