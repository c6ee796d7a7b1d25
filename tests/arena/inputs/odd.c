// Calls that are hard to trace, one by its name in argv[1]. Each ends with 0 if it went as it does without a tracer.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int ended(pid_t child) {
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static int int80(void) {
    // A 32-bit call takes pointers below 4 GiB.
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED) return 1;
    strcpy(low, "/tmp/by-int-eighty");
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(39L), "b"(low), "c"(0755L) : "memory", "r8", "r9", "r10", "r11");
    return result != 0;
}

static int vforked(void) {
    pid_t child = vfork();
    if (child == 0) { execl("/bin/mkdir", "mkdir", "/tmp/by-vfork", (char *)NULL); _exit(9); }
    return ended(child);
}

static int untraced(void) {
    pid_t child = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, NULL, NULL, NULL, NULL);
    if (child == 0) _exit(mkdir("/tmp/by-untraced", 0755) != 0);
    return ended(child);
}

static int clone3_untraced(void) {
    struct clone_args args = {.flags = CLONE_UNTRACED, .exit_signal = SIGCHLD};
    pid_t child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) _exit(mkdir("/tmp/by-clone-three", 0755) != 0);
    return ended(child);
}

// As a program without a C library ends.
static int raw_exit(void) {
    pid_t child = fork();
    if (child == 0) syscall(SYS_exit, 0);
    return ended(child);
}

static pthread_barrier_t at_once;

static void *leave(void *all) {
    pthread_barrier_wait(&at_once);
    syscall(all ? SYS_exit_group : SYS_exit, 0);
    return NULL;
}

// Processes of three threads that end at the same time, half of them each for itself.
static int exits_at_once(void) {
    for (int number = 0; number < 40; number++) {
        pid_t child = fork();
        if (child == 0) {
            pthread_t thread;
            void *all = number % 2 ? &at_once : NULL;
            pthread_barrier_init(&at_once, NULL, 3);
            if (pthread_create(&thread, NULL, leave, all) || pthread_create(&thread, NULL, leave, all)) _exit(1);
            leave(all);
        }
        if (ended(child)) return 1;
    }
    return 0;
}

static int in_raw_thread(void *done) {
    *(volatile int *)done = mkdir("/tmp/by-raw-thread", 0755) == 0 ? 1 : 2;
    return 0;
}

// As Go and musl create threads: not by clone3.
static int raw_thread(void) {
    static char stack[65536] __attribute__((aligned(16)));
    static volatile int done;
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    if (clone(in_raw_thread, stack + sizeof stack, flags, (void *)&done) < 0) return 1;
    while (done == 0) sched_yield();
    pid_t child = fork();
    if (child == 0) _exit(mkdir("/tmp/by-its-child", 0755) != 0);
    return done == 1 ? ended(child) : 2;
}

static void *exec_in_thread(void *unused) {
    (void)unused;
    execl("/bin/mkdir", "mkdir", "/tmp/by-thread", (char *)NULL);
    return NULL;
}

static void *sleep_in_thread(void *unused) { (void)unused; for (;;) pause(); }

static int thread_exec(void) {
    pthread_t one, two;
    pthread_create(&one, NULL, sleep_in_thread, NULL);
    pthread_create(&two, NULL, exec_in_thread, NULL);
    pthread_join(two, NULL);
    return 1;
}

static int group_stop(void) {
    pid_t child = fork();
    if (child == 0) { raise(SIGSTOP); _exit(mkdir("/tmp/by-continued", 0755) != 0); }
    int status = 0;
    if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) return 2;
    usleep(20000);
    struct stat st;
    if (stat("/tmp/by-continued", &st) == 0) return 3;  // It ran on while it was stopped.
    kill(child, SIGCONT);
    return ended(child);
}

static int page_end(void) {
    char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + 2 * 4096, 4096, PROT_NONE) != 0) return 1;
    const char *path = "/tmp/by-page-end";
    char *last = pages + 2 * 4096 - strlen(path) - 1;
    strcpy(last, path);
    char *across = pages + 4096 - 5;
    strcpy(across, "/tmp/across-pages");
    if (mkdir(across, 0755) != 0) return 2;
    strcpy(last, path);
    return mkdir(last, 0755) != 0;
}

static int traces(void) { return ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 ? 0 : 4; }

static int filter(int nr, unsigned action, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    if (flags != 0) return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

// As PRoot: a filter lets the tracer see the calls that it changes, and without one it sees all. Here it changes a mkdir.
static int traced_by_filter(void) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        int refused = filter(SYS_mkdir, SECCOMP_RET_TRACE, 0) != 0;
        if (refused && errno != EINVAL) _exit(7);
        _exit(syscall(SYS_mkdir, "/tmp/to-be-changed", 0755) != 0);
    }
    int status = 0, seen = 0;
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESECCOMP | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    for (;;) {
        if (ptrace(PTRACE_SYSCALL, child, NULL, NULL) != 0 || waitpid(child, &status, 0) != child) return 2;
        if (WIFEXITED(status)) break;
        struct user_regs_struct registers;
        ptrace(PTRACE_GETREGS, child, NULL, &registers);
        if (registers.orig_rax != SYS_mkdir || (long)registers.rax != -ENOSYS) continue;
        for (int n = 0; n < 3; n++) {
            long word = 0;
            memcpy(&word, "/tmp/by-its-tracer\0\0\0\0\0" + 8 * n, 8);
            ptrace(PTRACE_POKEDATA, child, (registers.rsp - 256) / 8 * 8 + 8 * n, word);
        }
        registers.rdi = (registers.rsp - 256) / 8 * 8;
        ptrace(PTRACE_SETREGS, child, NULL, &registers);
        seen = 1;
    }
    struct stat st;
    if (!seen || stat("/tmp/by-its-tracer", &st) != 0) return 3;
    return WEXITSTATUS(status);
}

static int watches(void) {
    int listener = filter(SYS_mkdir, SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER);
    return listener >= 0 || errno == EBUSY ? 0 : 2;
}

static int filtered(void) {
    if (filter(SYS_mkdir, SECCOMP_RET_ERRNO | EACCES, 0) != 0) return 1;
    if (syscall(SYS_mkdir, "/tmp/forbidden", 0755) == 0 || errno != EACCES) return 2;
    return syscall(SYS_mkdirat, AT_FDCWD, "/tmp/by-filtered", 0755) != 0;
}

static int signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int n = 0; n < 200; n++) {
        pid_t child = fork();
        if (child == 0) { kill(getppid(), SIGUSR1); _exit(0); }
        int got = 0;
        if (sigwait(&set, &got) != 0 || got != SIGUSR1 || ended(child) != 0) return 1;
    }
    return mkdir("/tmp/by-signals", 0755) != 0;
}

int main(int argc, char **argv) {
    struct { const char *name; int (*run)(void); } all[] = {
        {"raw-thread", raw_thread}, {"int80", int80}, {"vfork", vforked}, {"untraced", untraced}, {"clone3", clone3_untraced},
        {"thread-exec", thread_exec}, {"group-stop", group_stop}, {"page-end", page_end}, {"traces", traces},
        {"raw-exit", raw_exit}, {"exits-at-once", exits_at_once}, {"filtered", filtered}, {"signals", signals},
        {"traced-by-filter", traced_by_filter}, {"watches", watches},
    };
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        if (argc == 2 && strcmp(all[n].name, argv[1]) == 0) return all[n].run();
    return 64;
}
