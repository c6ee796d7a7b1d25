// A 32-bit program without a C library: what it changes goes through i386's own calls and its multiplexers. It ends with 0 if
// all of it went as it does without a tracer, and with the number of the call that did not otherwise.
typedef unsigned long word;

static long call(long number, word a, word b, word c, word d, word e) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}

static const char name[] = "/tmp/by-i-three";
static const char *const arguments[] = {"/bin/sh", "-c", "exit 0", 0};

void _start(void) {
    struct { unsigned short family; char path[14]; } address = {1, "/tmp/by-socket"};
    long failed = 0;
    if (call(39, (word)name, 0755, 0, 0, 0) != 0) failed = 39;
    long file = call(5, (word) "/tmp/by-i-three/file", 0101, 0644, 0, 0);
    if (call(4, file, (word) "some", 4, 0, 0) != 4) failed = 4;
    if (call(194, file, 2, 0, 0, 0) != 0) failed = 194;
    word of_socket[] = {1, 1, 0};
    long socket = call(102, 1, (word)of_socket, 0, 0, 0);
    word of_bind[] = {socket, (word)&address, sizeof address};
    if (call(102, 2, (word)of_bind, 0, 0, 0) != 0) failed = 2;
    // IPC_PRIVATE; then IPC_RMID.
    long segment = call(117, 23, 0, 4096, 0600, 0);
    if (segment < 0 || call(117, 24, segment, 0x100, 0, 0) != 0) failed = 117;
    // CLONE_UNTRACED and SIGCHLD.
    long child = call(120, 0x800000 | 17, 0, 0, 0, 0);
    if (child == 0) call(1, call(39, (word) "/tmp/by-its-child", 0755, 0, 0, 0) != 0, 0, 0, 0, 0);
    int status = -1;
    if (call(7, child, (word)&status, 0, 0, 0) != child || status != 0) failed = 120;
    if (failed == 0) call(11, (word)arguments[0], (word)arguments, 0, 0, 0);
    call(1, failed ? failed : 11, 0, 0, 0, 0);
    __builtin_unreachable();
}
