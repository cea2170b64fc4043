/* A heap of which most is holes: 100,000 blocks of 1,500 bytes, of which one in six is kept in a static table.
 * Prints READY, waits for a line, and writes what mallinfo2 says: arena, uordblks, fordblks.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 100000

static char *kept[BLOCKS];

int main(void)
{
    static char line[64], out[256];
    setvbuf(stdout, out, _IOLBF, sizeof out);
    for (int i = 0; i < BLOCKS; i++) {
        kept[i] = malloc(1500);
        memset(kept[i], 1, 1500);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (i % 6) {
            free(kept[i]);
            kept[i] = NULL;
        }
    puts("READY");
    while (fgets(line, sizeof line, stdin)) {
        struct mallinfo2 info = mallinfo2();
        printf("%zu %zu %zu\n", info.arena, info.uordblks, info.fordblks);
    }
    return 0;
}
