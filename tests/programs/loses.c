/* A library that takes memory with malloc: blocks that are lost, kept in a table, and freed at once. */
#include <stdlib.h>
#include <string.h>

void *kept[1 << 16];
static unsigned number;

static void **taken(size_t size)
{
    void **block = malloc(size);
    memset(block, 0, size);
    block[0] = (void *)taken;
    return block;
}

void lose(size_t size)
{
    void **volatile block = taken(size);
    block = NULL;
    (void)block;
}

void keep(size_t size)
{
    kept[number++ & 0xFFFF] = taken(size);
}

void *lend(size_t size)
{
    return taken(size);
}

void give_back(void *block)
{
    free(block);
}
