#include "wav.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t number(const unsigned char *at, int bytes) {
  uint32_t value = 0;
  for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
  return value;
}

static unsigned char *slurp(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  unsigned char *data = NULL;
  size_t room = 0;
  *size = 0;
  do {
    if (*size == room) {
      unsigned char *more = realloc(data, room = room ? 2 * room : 1 << 20);
      if (!more) break;
      data = more;
    }
    *size += fread(data + *size, 1, room - *size, file);
  } while (!feof(file) && !ferror(file));
  fclose(file);
  return data;
}

float *wav_read(const char *path, int sample_rate, size_t *samples, const char **why) {
  size_t size;
  unsigned char *data = slurp(path, &size);
  float *pcm = NULL;
  *why = data ? "is no WAV file" : "cannot be opened";
  if (!data || size < 12 || memcmp(data, "RIFF", 4) || memcmp(data + 8, "WAVE", 4)) goto end;
  uint32_t format = 0, channels = 0, rate = 0, bits = 0;
  for (size_t at = 12; at + 8 <= size;) {
    size_t length = number(data + at + 4, 4), left = size - at - 8;
    if (length > left) length = left;
    const unsigned char *body = data + at + 8;
    if (!memcmp(data + at, "fmt ", 4) && length >= 16) {
      format = number(body, 2), channels = number(body + 2, 2), rate = number(body + 4, 4), bits = number(body + 14, 2);
      if (format == 0xFFFE && length >= 26) format = number(body + 24, 2);
    } else if (!memcmp(data + at, "data", 4)) {
      int floats = format == 3 && bits == 32, words = format == 1 && bits == 16;
      *why = "is neither of 16 bits nor of floats";
      if (!channels || (!floats && !words)) goto end;
      *why = "has another sample rate than the model: convert it first (afconvert -d LEI16@24000 -c 1 -f WAVE IN OUT)";
      if ((int)rate != sample_rate) goto end;
      *samples = length / (bits / 8) / channels;
      *why = "is too large";
      if (!(pcm = calloc(*samples + 1, sizeof(float)))) goto end;
      for (size_t i = 0; i < *samples; i++)
        for (uint32_t c = 0; c < channels; c++) {
          const unsigned char *sample = body + (i * channels + c) * (bits / 8);
          float value;
          if (floats) memcpy(&value, sample, 4);
          else value = (float)(int16_t)number(sample, 2) / 32768.0f;
          pcm[i] += value / (float)channels;
        }
      goto end;
    }
    at += 8 + length + (length & 1);
  }
end:
  free(data);
  return pcm;
}

int wav_write(const char *path, int sample_rate, const float *pcm, size_t samples) {
  FILE *file = fopen(path, "wb");
  if (!file) return 1;
  uint32_t bytes = (uint32_t)samples * 2, rate = (uint32_t)sample_rate;
  const uint32_t fields[] = {36 + bytes, 16, 1 | 1 << 16, rate, 2 * rate, 2 | 16 << 16, bytes};
  const char *const names[] = {"RIFF", "WAVEfmt ", "", "", "", "", "data"};
  for (int i = 0; i < 7; i++) {
    fwrite(names[i], 1, strlen(names[i]), file);
    for (int b = 0; b < 4; b++) fputc((int)(fields[i] >> 8 * b & 255), file);
  }
  for (size_t i = 0; i < samples; i++) {
    long value = lrintf(fmaxf(-1, fminf(1, pcm[i])) * 32767);
    fputc((int)(value & 255), file), fputc((int)(value >> 8 & 255), file);
  }
  int failed = ferror(file);
  return fclose(file) || failed;
}
