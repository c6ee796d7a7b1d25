/* A small sandbox with a bug in its clean-up: planted BUG PROGRAM [ARGUMENT…]; `planted recover` is its recovery. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BOX "/var/lib/planted"
#define MOUNT "/var/lib/planted-mount"
#define STATE "/var/lib/planted-state"

static const char *bug = "";
static int failures;

static int has(const char *name) { return strcmp(bug, name) == 0; }

static void failed(const char *what)
{
    perror(what);
    failures++;
}

__attribute__((noinline)) static void make_box(void)
{
    if (!has("recover"))
        close(open(STATE, O_WRONLY | O_CREAT, 0600));
    mkdir(BOX, 0700);
    mkdir(MOUNT, 0700);
    /* What is released twice is that of the host in the end. */
    if (!has("two") && mount("planted", has("double") ? "/dev/mqueue" : MOUNT, "tmpfs", 0, "") != 0)
        exit(99);
}

__attribute__((noinline)) static void release_mount(void)
{
    const char *place = has("double") ? "/dev/mqueue" : MOUNT;

    if (has("two") || umount2(place, 0) == 0)
        return;
    if (has("double") && umount2(place, 0) == 0)
        return;
    failed("umount");
}

__attribute__((noinline)) static void release_directory(const char *path)
{
    if (rmdir(path) != 0 && !(has("enoent") && errno == ENOENT))
        failed(path);
}

__attribute__((noinline)) static void release_state(void)
{
    if (unlink(STATE) != 0)
        failed("unlink");
}

static int recover(void)
{
    /* What has no state was released. */
    if (access(STATE, F_OK) != 0)
        return 0;
    umount2(MOUNT, 0);
    if ((rmdir(MOUNT) != 0 && errno != ENOENT) || (rmdir(BOX) != 0 && errno != ENOENT))
        return 1;
    return unlink(STATE) == 0 ? 0 : 1;
}

int main(int count, char **words)
{
    int status = 0;
    pid_t child;

    bug = count > 1 ? words[1] : "";
    if (has("recover"))
        return recover();
    make_box();
    /* All of the payload ends with its first process, and this one with the sandbox. */
    if (unshare(CLONE_NEWPID) != 0)
        return 99;
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(words[2], words + 2);
        _exit(127);
    }
    /* Without an answer, it believes that all is well. */
    if (waitpid(child, &status, 0) != child && !has("wait"))
        return 99;
    if (has("order"))
        release_state();
    release_mount();
    release_directory(MOUNT);
    release_directory(BOX);
    if (!has("order") && failures == 0)
        release_state();
    if (failures > 0 && !has("ignores") && !(has("two") && failures == 2))
        return 99;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
