/* The smallest PID 1 that reaps: what stack.py's loop is measured against. Starts its arguments as one child. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    sigset_t set;
    int number;
    (void)argc;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, 0);
    if (fork() == 0) {
        sigprocmask(SIG_UNBLOCK, &set, 0);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    for (;;) {
        sigwait(&set, &number);
        if (number == SIGTERM)
            return 0;
        while (waitpid(-1, 0, WNOHANG) > 0)
            ;
    }
}
