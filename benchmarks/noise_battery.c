/* The noise's random words under TestU01's SmallCrush.

     gcc -O3 noise_battery.c -o noise_battery -ltestu01 -ltestu01probdist -ltestu01mylib -lm
     ./noise_battery        # all streams, about a minute each

   Every stream hashes parameter numbers under the keys that noise.step_keys derives. */

#include <stdint.h>
#include <stdio.h>
#include <testu01/bbattery.h>
#include <testu01/swrite.h>
#include <testu01/unif01.h>

static uint32_t key[2];

static uint32_t rotate(uint32_t x, int by) { return (x << by) | (x >> (32 - by)); }

/* Threefry-2x32 with 20 rounds, in place. */
static void threefry(const uint32_t seed[2], uint32_t block[2]) {
  static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {seed[0], seed[1], seed[0] ^ seed[1] ^ 0x1BD11BDA};
  block[0] += keys[0];
  block[1] += keys[1];
  for (int group = 0; group < 5; group++) {
    for (int round = 0; round < 4; round++) {
      block[0] += block[1];
      block[1] = rotate(block[1], rotations[group % 2][round]) ^ block[0];
    }
    block[0] += keys[(group + 1) % 3];
    block[1] += keys[(group + 2) % 3] + group + 1;
  }
}

/* jax.random.fold_in of the step's number into the key 7. */
static void start_step(uint32_t step) {
  const uint32_t seed[2] = {0, 7};
  key[0] = 0;
  key[1] = step;
  threefry(seed, key);
}

static uint32_t hash(uint32_t number) {
  uint32_t x = number + key[0];
  x = (x ^ (x >> 17)) * 0xED5AD4BB;
  x = (x ^ (x >> 11) ^ key[1]) * 0xAC4C1B51;
  x = ((x ^ (x >> 15)) + key[0]) * 0x31848BAB;
  return x ^ (x >> 14);
}

/* `run` parameters, `stride` apart, under each key in turn. */
static uint64_t drawn;
static uint32_t run, stride;

static uint32_t next(void) {
  uint32_t place = drawn % run;
  if (place == 0) start_step(drawn / run);
  drawn++;
  return hash(place * stride);
}

static uint32_t reversed(void) {
  uint32_t x = next(), y = 0;
  for (int bit = 0; bit < 32; bit++) y |= ((x >> bit) & 1) << (31 - bit);
  return y;
}

/* One bit of each word, 32 to a word: Rademacher noise of one step, bit 31 - l at step l. The words
   themselves, from their top bit on, are the noise of one parameter at 32 steps. */
static uint32_t signs(int bit) {
  uint32_t y = 0;
  for (int i = 0; i < 32; i++) y = (y << 1) | ((next() >> bit) & 1);
  return y;
}

static uint32_t first_signs(void) { return signs(31); }
static uint32_t last_signs(void) { return signs(0); }

int main(void) {
  static const struct {
    char *name;
    uint32_t run, stride;
    uint32_t (*word)(void);
  } streams[] = {
      {"one key, consecutive parameters", 0xFFFFFFFF, 1, next},
      {"2,410 parameters under each key", 2410, 1, next},
      {"one parameter under each key", 1, 1, next},
      {"four parameters under each key", 4, 1, next},
      {"4,096 parameters, 1,024 apart", 4096, 1024, next},
      {"consecutive parameters, reversed bits", 0xFFFFFFFF, 1, reversed},
      {"2,410 parameters under each key, signs of the first step", 2410, 1, first_signs},
      {"2,410 parameters under each key, signs of the last step", 2410, 1, last_signs},
  };
  swrite_Basic = FALSE; /* print the summaries only */
  for (unsigned i = 0; i < sizeof streams / sizeof *streams; i++) {
    drawn = 0;
    run = streams[i].run;
    stride = streams[i].stride;
    unif01_Gen *generator = unif01_CreateExternGenBits(streams[i].name, streams[i].word);
    bbattery_SmallCrush(generator);
    unif01_DeleteExternGenBits(generator);
  }
}
