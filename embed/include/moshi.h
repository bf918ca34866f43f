/* Moshi for programs in C, C++, Swift, Rust, ...: a spoken conversation, a frame of 80 ms at a time.

   What runs is a bundle (python -m moshi_mlx.export CHECKPOINT FOLDER) beside the published weights. Every function
   that can fail returns a moshi_status; moshi_error() has the words. Nothing here throws, aborts or exits. Any function
   may be called from any thread; MLX's work is done on a thread of the library's own. A conversation takes one call at a
   time, and calls to several conversations and models are done one after the other.

     moshi_model *model;
     moshi_conversation *talk;
     moshi_frame frame;
     if (moshi_load("bundle", "checkpoint", NULL, &model) || moshi_begin(model, NULL, &talk)) puts(moshi_error());
     while (microphone(pcm)) {
       if (moshi_step(talk, pcm, 1920, &frame)) { puts(moshi_error()); break; }
       if (frame.pcm) speaker(frame.pcm);
       fputs(frame.text, stdout);
     }
     moshi_end(talk);
     moshi_free(model);
*/
#ifndef MOSHI_H
#define MOSHI_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MOSHI_API
#else
#define MOSHI_API __attribute__((visibility("default")))
#endif

typedef struct moshi_model moshi_model;
typedef struct moshi_conversation moshi_conversation;

typedef enum {
  MOSHI_OK = 0,
  MOSHI_BAD_ARGUMENT = 1,   /* a value that this function does not take */
  MOSHI_BAD_BUNDLE = 2,     /* the bundle is missing, damaged, or of another format */
  MOSHI_BAD_CHECKPOINT = 3, /* the weights are missing, damaged, or not those of the bundle */
  MOSHI_BAD_FILE = 4,       /* a saved conversation cannot be written or read */
  MOSHI_FAILED = 5          /* MLX failed, or memory ran out; reset the conversation before its next frame */
} moshi_status;

/* The words of the last error on this thread, UTF-8, never NULL; valid until this thread's next call. */
MOSHI_API const char *moshi_error(void);

/* ---- a model ---- */

typedef struct {
  size_t size;         /* of this struct, as moshi_load_defaults() sets it */
  int32_t own_thread;  /* 1: the library's own thread; 0: the calling one: one at a time, of all that use MLX */
  int32_t warm_up;     /* 1: run a frame and prepare every cache size now, so that no frame waits for it later */
  uint64_t cache_bytes;  /* what MLX keeps of freed memory (process-wide); default 512 MB, take 64 MB on a phone */
  uint64_t memory_bytes; /* MLX's memory limit (process-wide); 0: MLX's own */
  uint64_t wired_bytes;  /* keep so much wired (macOS 15, process-wide); 0: as it is */
} moshi_load_options;

typedef struct {
  int32_t sample_rate;    /* Hz */
  int32_t frame_size;     /* samples a frame */
  int32_t codebooks;      /* of Moshi's sound */
  int32_t user_codebooks; /* of the user's */
  int32_t text_tokens;    /* size of the text vocabulary */
  int32_t audio_tokens;   /* codes a codebook */
  int32_t delay;          /* frames until the first sound */
  int32_t context;        /* frames that are remembered */
  int32_t kv_bits;        /* of the attention cache; 0: the model's own type */
  uint64_t weight_bytes;  /* in memory */
  const char *made_by;    /* these two live as long as the model */
  const char *licence;
} moshi_info;

MOSHI_API moshi_load_options moshi_load_defaults(void);
/* bundle, checkpoint: paths of folders, UTF-8. options may be NULL. */
MOSHI_API moshi_status moshi_load(const char *bundle, const char *checkpoint, const moshi_load_options *options,
                                  moshi_model **model);
/* Conversations go on to live; memory is freed with the last of them. NULL is allowed. */
MOSHI_API void moshi_free(moshi_model *model);
MOSHI_API moshi_status moshi_get_info(const moshi_model *model, moshi_info *info);
/* MLX's memory in bytes, of the whole process: now, and at most so far. Either may be NULL. */
MOSHI_API moshi_status moshi_memory(moshi_model *model, uint64_t *now, uint64_t *peak);

/* ---- a conversation ---- */

typedef struct {
  size_t size;       /* of this struct, as moshi_defaults() sets it */
  uint64_t seed;     /* the same seed and settings, the same conversation */
  double temperature; /* of Moshi's sound; 0 takes the likeliest token */
  int32_t top_k;     /* 0: no limit */
  double top_p;      /* 1: no limit */
  double min_p;      /* 0: no limit */
  double text_temperature;
  int32_t text_top_k;
  double text_top_p;
  double text_min_p;
} moshi_settings;

typedef struct {
  const float *pcm;           /* [frame_size] in [-1, 1]: what Moshi says meanwhile; NULL while the delay fills */
  const int32_t *audio_codes; /* [codebooks], the codes of pcm; NULL while the delay fills */
  const char *text;           /* what this frame adds to the text, UTF-8, "" for padding */
  int32_t text_token;
} moshi_frame; /* its arrays are valid until the next call on the conversation */

/* What the checkpoint asks for, seed 0. */
MOSHI_API moshi_settings moshi_defaults(const moshi_model *model);
/* A new conversation, ready for its first frame. settings may be NULL. */
MOSHI_API moshi_status moshi_begin(moshi_model *model, const moshi_settings *settings, moshi_conversation **talk);
/* NULL is allowed; not from within on_text. */
MOSHI_API void moshi_end(moshi_conversation *talk);
/* Begin anew, without loading anything; settings may be NULL: as before. */
MOSHI_API moshi_status moshi_reset(moshi_conversation *talk, const moshi_settings *settings);
/* One frame: pcm [frame_size], what the user says. NaN and infinite samples count as silence. */
MOSHI_API moshi_status moshi_step(moshi_conversation *talk, const float *pcm, size_t samples, moshi_frame *frame);
/* The same from Mimi codes of the user's sound: [user_codebooks], -1 where there is no input. A translator (Hibiki) hears
   audio_tokens itself, once on all codebooks, as the end of its source. */
MOSHI_API moshi_status moshi_step_codes(moshi_conversation *talk, const int32_t *codes, size_t count,
                                        moshi_frame *frame);
/* NaN and infinite samples that were taken as silence so far. */
MOSHI_API uint64_t moshi_nonfinite_samples(const moshi_conversation *talk);

/* Called once a frame with the sampled text token, before the sound is made, on the thread that does MLX's work: it
   returns another token to say that instead, MOSHI_KEEP, or MOSHI_FAIL to end the call to moshi_step with an error (the
   frame then counts as spoken with the sampled token). It may call anything but functions of its own conversation, and
   it throws nothing. */
#define MOSHI_KEEP (-1)
#define MOSHI_FAIL (-2)
typedef int32_t (*moshi_on_text)(int32_t token, void *context);
MOSHI_API moshi_status moshi_set_on_text(moshi_conversation *talk, moshi_on_text hook, void *context);

/* Write a conversation between two frames to a file, and go on from it later, with the same bundle; the hook is set
   anew. The file is there whole or not at all. */
MOSHI_API moshi_status moshi_save(moshi_conversation *talk, const char *path);
MOSHI_API moshi_status moshi_restore(moshi_model *model, const char *path, moshi_conversation **talk);

#ifdef __cplusplus
}
#endif
#endif
