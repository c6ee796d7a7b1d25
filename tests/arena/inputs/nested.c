// A call three functions deep.
#include <sys/stat.h>

__attribute__((noinline)) int innermost(const char *path) { return mkdir(path, 0700) + 1; }
__attribute__((noinline)) int middle(const char *path) { return innermost(path) + 1; }
__attribute__((noinline)) int outermost(const char *path) { return middle(path) + 1; }
int main(void) { return outermost("/tmp/nested") != 3; }
