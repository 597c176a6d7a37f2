#!/bin/sh
# Root's shell. Without arguments it is the Python prompt. A line (-c LINE, which is how ssh runs a command, and with it scp,
# sftp and rsync) goes to /bin/sh at once, but for one that looks like a call of one of the prompt's functions: NAME(...),
# NAME = NAME(...), for NAME in NAME(...):. The prompt decides, and gives /bin/sh what is not Python of ours.
python=@PYTHON@ prompt=@LIB@/prompt/repl.py
if [ ! -x "$python" ] || [ ! -r "$prompt" ]; then
    echo "stack-shell: there is no $python or no $prompt; this is /bin/sh" >&2
    exec /bin/sh "$@"
fi
case $#:${1-} in
    0:) exec "$python" -P "$prompt" ;;
    1:-l | 1:-i) exec "$python" -P "$prompt" ;;
    2:-c)
        line=${2#"${2%%[! ]*}"}
        case $line in
            "for "*" in "[a-z]*\(*:* | [a-z]*" = "[a-z]*\(*) exec "$python" -P "$prompt" -c "$2" ;;
            "from sv import "* | "import sv" | "import sv"[!a-z_]*) exec "$python" -P "$prompt" -c "$2" ;;
            [a-z]*\(*)
                case ${line%%\(*} in
                    *[!a-z_]*) ;;
                    *) exec "$python" -P "$prompt" -c "$2" ;;
                esac
                ;;
        esac
        ;;
esac
exec /bin/sh "$@"
