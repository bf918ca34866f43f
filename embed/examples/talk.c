/* Asks Moshi what a file says, and writes what it answers: moshi-talk-c BUNDLE CHECKPOINT question.wav reply.wav */
#include <moshi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wav.h"

static int failed(const char *what) {
  fprintf(stderr, "\n%s: %s\n", what, moshi_error());
  return 2;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: %s BUNDLE CHECKPOINT question.wav reply.wav\n", argv[0]);
    return 2;
  }
  moshi_model *model;
  moshi_conversation *talk;
  if (moshi_load(argv[1], argv[2], NULL, &model)) return failed("load");
  moshi_info info;
  if (moshi_get_info(model, &info)) return failed("info");

  size_t samples, frame_size = (size_t)info.frame_size;
  const char *why;
  float *question = wav_read(argv[3], info.sample_rate, &samples, &why);
  if (!question) {
    fprintf(stderr, "%s %s\n", argv[3], why);
    return 2;
  }
  size_t tail = (size_t)info.sample_rate * 4; /* silence to answer in */
  size_t frames = (samples + tail) / frame_size;
  float *reply = calloc(frames * frame_size, sizeof(float)), *pcm = calloc(frame_size, sizeof(float));
  if (!reply || !pcm) return 2;

  moshi_settings settings = moshi_defaults(model);
  settings.seed = 7;
  if (moshi_begin(model, &settings, &talk)) return failed("begin");
  for (size_t n = 0; n < frames; n++) {
    size_t from = n * frame_size, there = from < samples ? samples - from : 0;
    memset(pcm, 0, frame_size * sizeof(float));
    if (there) memcpy(pcm, question + from, (there < frame_size ? there : frame_size) * sizeof(float));
    moshi_frame frame;
    if (moshi_step(talk, pcm, frame_size, &frame)) return failed("step");
    if (frame.pcm) memcpy(reply + from, frame.pcm, frame_size * sizeof(float));
    fputs(frame.text, stdout);
    fflush(stdout);
  }
  puts("");
  moshi_end(talk);
  moshi_free(model);
  if (wav_write(argv[4], info.sample_rate, reply, frames * frame_size)) {
    perror(argv[4]);
    return 2;
  }
  free(question), free(reply), free(pcm);
  return 0;
}
