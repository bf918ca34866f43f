/* From C: what a bundle says is what the Session says. moshi-equal CASES NAME.SETTINGS... (see cases.py) */
#include <math.h>
#include <moshi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FRAME 1920
#define CHECK(call)                                                                                  \
  do {                                                                                               \
    if (call) {                                                                                      \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, moshi_error());                  \
      exit(1);                                                                                       \
    }                                                                                                \
  } while (0)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int later(const void *a, const void *b) {
  double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

static FILE *opened(const char *folder, const char *name, const char *suffix) {
  char path[1024];
  snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
  FILE *file = fopen(path, "rb");
  if (!file) perror(path), exit(2);
  return file;
}

static int run(const char *folder, const char *name) {
  char bundle[1024], checkpoint[1024], text[256], expected[256];
  int length = (int)(strchr(name, '.') - name);
  snprintf(bundle, sizeof bundle, "%s/%.*s/bundle", folder, length, name);
  snprintf(checkpoint, sizeof checkpoint, "%s/%.*s/checkpoint", folder, length, name);
  moshi_model *model;
  moshi_conversation *talk;
  double start = now();
  CHECK(moshi_load(bundle, checkpoint, NULL, &model));
  double load = now() - start;
  moshi_info info;
  uint64_t in_use, peak;
  CHECK(moshi_get_info(model, &info));
  CHECK(moshi_memory(model, &in_use, &peak));
  moshi_settings s = moshi_defaults(model);
  FILE *sound = opened(folder, "sound.f32", ""), *lines = opened(folder, name, ".txt"), *reply = opened(folder, name, ".f32");
  if (fscanf(lines, "%lu %lf %d %lf %lf %lf %d %lf %lf", &s.seed, &s.temperature, &s.top_k, &s.top_p, &s.min_p,
             &s.text_temperature, &s.text_top_k, &s.text_top_p, &s.text_min_p) != 9) return 2;
  CHECK(moshi_begin(model, &s, &talk));
  float pcm[FRAME], want[FRAME];
  double worst = 0, times[1000];
  int frames = 0, wrong = 0, token, ready, code;
  for (; frames < 1000 && fread(pcm, sizeof pcm, 1, sound) == 1 && fscanf(lines, "%d %d", &token, &ready) == 2; frames++) {
    moshi_frame frame;
    start = now();
    CHECK(moshi_step(talk, pcm, FRAME, &frame));
    times[frames] = now() - start;
    wrong += frame.text_token != token || (frame.pcm != NULL) != ready;
    if (fread(want, sizeof want, 1, reply) != 1) return 2;
    for (int k = 0; k < info.codebooks; k++) {
      if (fscanf(lines, "%d", &code) != 1) return 2;
      wrong += (frame.audio_codes ? frame.audio_codes[k] : -1) != code;
    }
    for (int k = 0; frame.pcm && k < FRAME; k++) worst = fmax(worst, fabs((double)frame.pcm[k] - (double)want[k]));
    if (fscanf(lines, " %255s", expected) != 1) return 2;
    text[0] = 'x';
    size_t at = 1;
    for (const char *c = frame.text; *c && at < 250; c++, at += 2) snprintf(text + at, 3, "%02x", (unsigned char)*c);
    text[at] = 0;
    wrong += strcmp(text, expected) != 0;
  }
  fclose(sound), fclose(lines), fclose(reply);
  moshi_end(talk);
  moshi_free(model);
  qsort(times, (size_t)frames, sizeof(double), later);
  printf("%-18s %d frames, %d wrong, sound within %.1e; load %.0f ms, frame %.2f ms (median), 95%% within %.2f; weights %.1f MB, peak %.2f of them\n",
         name, frames, wrong, worst, load, times[frames / 2], times[frames * 95 / 100], (double)info.weight_bytes / 1e6,
         (double)peak / (double)info.weight_bytes);
  return frames < 100 || wrong || worst > 1e-5;
}

int main(int argc, char **argv) {
  int failed = argc < 3;
  for (int i = 2; i < argc; i++) failed |= run(argv[1], argv[i]);
  return failed;
}
