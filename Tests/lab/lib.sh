# The library of the lab's test groups that are written in bash. A group begins with
#     . /job/lib.sh || exit
# and ends with `finish`. Each test is a sentence; it prints one line:
#     ok - SENTENCE     not ok - SENTENCE: WHAT CAME OUT     skip - SENTENCE: REASON

lab_finished=
lab_baseline_fds=
BROKER_PID=
BROKER_LOG=/run/lab/broker.log
kernel_series=$(uname -r | cut -d. -f1,2)

# --- results ---------------------------------------------------------------------------------------------------------

lab_one_line() { tr '\n' '|' <<<"$*" | sed 's/|*$//;s/|/ | /g' | cut -c1-600; }
ok() { echo "ok - $*"; }
not_ok() { echo "not ok - $1: $(lab_one_line "${2:-}")"; }
skip() { echo "skip - $1: $(lab_one_line "$2")"; }

# count N: how often to do what issue or documentation promise N times: N with `Tests/lab/run --full` (make soak), otherwise
# a tenth of it. note SENTENCE VALUE: something measured, which is no result; docs/proof.md has it. progress WHAT DONE OF.
count() { echo $((${LAB_FULL:-0} ? $1 : ($1 + 9) / 10)); }
note() { echo "note - $1: $(lab_one_line "$2")"; }
progress() { echo "@progress $*"; }

# finish: the end of the group. A group that ends any other way has died, and counts as failed.
finish() {
    lab_finished=1
    exit 0
}
lab_exit() {
    local status=$?
    [ -z "$BROKER_PID" ] || stop_broker
    [ -n "$lab_finished" ] || { echo "the group ended before \`finish\`, with status $status" && exit 70; }
}
trap lab_exit EXIT

# A misspelt test would otherwise just not be there.
command_not_found_handle() {
    echo "not ok - every command of the group exists: \"$1\" does not (line ${BASH_LINENO[0]})" >&2
    return 127
}

# check SENTENCE COMMAND...: the command succeeds.
check() {
    local sentence=$1 output status
    shift
    output=$("$@" 2>&1)
    status=$?
    if [ $status -eq 0 ]; then ok "$sentence"; else not_ok "$sentence" "\`$*\` ended with status $status: $output"; fi
    return $status
}

# check_not SENTENCE COMMAND...: the command fails (with an exit status of its own, not by a signal).
check_not() {
    local sentence=$1 output status
    shift
    output=$("$@" 2>&1)
    status=$?
    if [ $status -ne 0 ] && [ $status -lt 126 ]; then ok "$sentence"; else not_ok "$sentence" "\`$*\` ended with status $status: $output"; fi
}

# expect_output SENTENCE TEXT COMMAND...: the command succeeds and prints exactly TEXT (standard output, last newline aside).
expect_output() {
    local sentence=$1 text=$2 output status
    shift 2
    output=$("$@" 2>/run/lab/stderr)
    status=$?
    if [ $status -eq 0 ] && [ "$output" = "$text" ]; then
        ok "$sentence"
    else
        not_ok "$sentence" "\`$*\` ended with status $status and printed \"$output\" instead of \"$text\"; standard error: $(cat /run/lab/stderr)"
    fi
}

# expect_match SENTENCE REGEX COMMAND...: the command succeeds and REGEX (extended) matches some line that it prints.
expect_match() {
    local sentence=$1 regex=$2
    shift 2
    expect_failure "$sentence" 0 "$regex" "$@"
}

# expect_failure SENTENCE STATUS REGEX COMMAND...: the command ends with STATUS, and REGEX matches some line of its output.
expect_failure() {
    local sentence=$1 wanted=$2 regex=$3 output status
    shift 3
    output=$("$@" 2>&1)
    status=$?
    if [ $status -eq "$wanted" ] && grep -Eq -- "$regex" <<<"$output"; then
        ok "$sentence"
    else
        not_ok "$sentence" "\`$*\` ended with status $status (wanted $wanted, and /$regex/): $output"
    fi
}

# eventually SECONDS COMMAND...: waits until the command succeeds; fails when the time is over. A loaded host gets more.
eventually() {
    local deadline=$((SECONDS + $1 * ${LAB_PATIENCE:-1} + 1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# --- users -----------------------------------------------------------------------------------------------------------

# as USER COMMAND...: as that user: her groups, no capability, a fresh environment (PATH and UBD_SOCKET stay).
as() { as-user "$@"; }

# --- the broker ------------------------------------------------------------------------------------------------------

broker=/usr/libexec/ubd/ubd-broker

# start_broker [ARGUMENT...]: starts ubd-broker as root and waits until it answers. Its log is $BROKER_LOG (appended).
# (A command given in the array broker_wrapper is put before it: broker_wrapper=(strace -f -o /tmp/trace).)
start_broker() {
    [ -z "$BROKER_PID" ] || { echo "start_broker: one is running already, as $BROKER_PID" && return 1; }
    env -i PATH="$PATH" "${broker_wrapper[@]}" "$broker" --foreground "$@" </dev/null >>"$BROKER_LOG" 2>&1 &
    BROKER_PID=$!
    if ! eventually 15 lab_broker_answers; then
        echo "start_broker: it does not answer; its log:"
        tail -n 20 "$BROKER_LOG"
        kill -KILL "$BROKER_PID" 2>/dev/null
        wait "$BROKER_PID" 2>/dev/null
        BROKER_PID=
        return 1
    fi
    # What it holds with no device and no client.
    [ -n "$lab_baseline_fds" ] || { sleep 0.2 && lab_baseline_fds=$(broker_fds); }
}
lab_broker_answers() {
    kill -0 "$BROKER_PID" 2>/dev/null || return 1
    ubd info >/dev/null 2>&1
    [ $? -ne 6 ]
}

# broker_fds: how many descriptors the broker has open.
broker_fds() { ls "/proc/$BROKER_PID/fd" 2>/dev/null | wc -l; }

# stop_broker [SIGNAL]: ends the broker (TERM) and waits for it; its exit status is in BROKER_STATUS.
stop_broker() {
    [ -n "$BROKER_PID" ] || return 0
    kill -"${1:-TERM}" "$BROKER_PID" 2>/dev/null
    if ! eventually 15 lab_gone "$BROKER_PID"; then
        echo "stop_broker: $BROKER_PID did not end after ${1:-TERM}; killing it"
        kill -KILL "$BROKER_PID"
    fi
    wait "$BROKER_PID" 2>/dev/null
    BROKER_STATUS=$?
    BROKER_PID=
    lab_baseline_fds=
}
# lab_gone PID: it has ended (a child of ours that nobody has waited for yet is a zombie: gone, too).
lab_gone() { ! [ -e "/proc/$1" ] || [ "$(sed 's/.*) //;s/ .*//' "/proc/$1/stat" 2>/dev/null)" = Z ]; }

# leftovers: names everything that ubd could leave behind; prints nothing when there is nothing.
leftovers() {
    ls -d /dev/ublkc* /dev/ublkb* /dev/ubdb* /run/ubd/state/* /run/ubd/udev/* 2>/dev/null
    local task
    for task in /proc/[0-9]*; do
        case $(readlink "$task/exe" 2>/dev/null) in */ubd-worker) echo "worker ${task#/proc/}" ;; esac
        # A worker is not readable to everybody, and its /proc/PID/exe may point into a root that is gone.
        case $(cat "$task/comm" 2>/dev/null) in ubd-worker*) echo "worker ${task#/proc/}" ;; esac
    done | sort -u
    if [ -n "$BROKER_PID" ] && [ -n "$lab_baseline_fds" ] && [ "$(broker_fds)" -ne "$lab_baseline_fds" ]; then
        echo "the broker has $(broker_fds) descriptors, $lab_baseline_fds at first:"
        ls -l "/proc/$BROKER_PID/fd" | sed 's/.*[0-9] \([0-9]* -> \)/\1/'
    fi
}
lab_none_left() { [ -z "$(leftovers)" ]; }

# no_leftovers [SENTENCE]: no device, node, link, record, worker or open descriptor is left (given some seconds).
no_leftovers() {
    if eventually 10 lab_none_left; then
        ok "${1:-nothing is left behind}"
    else
        not_ok "${1:-nothing is left behind}" "$(leftovers)"
    fi
}

# --- input and output ------------------------------------------------------------------------------------------------

# fio_moves SENTENCE DIRECTIONS FIO-ARGUMENT...: fio ends without an error and really moved bytes in each direction named
# ("read", "write", "trim", or several). Its JSON stays in /run/lab/fio.json.
fio_moves() {
    local sentence=$1 directions=$2 output problem
    shift 2
    output=$(fio --name=job --output=/run/lab/fio.json --output-format=json "$@" 2>&1) || {
        not_ok "$sentence" "fio ended with status $?: $output $(jq -r '[.jobs[]?.error] | tostring' /run/lab/fio.json 2>/dev/null)"
        return 1
    }
    problem=$(fio_problem /run/lab/fio.json $directions)
    if [ -z "$problem" ]; then ok "$sentence"; else not_ok "$sentence" "$problem"; fi
    [ -z "$problem" ]
}

# fio_problem FILE DIRECTION...: what is wrong in fio's JSON; nothing when every job moved bytes without an error.
fio_problem() {
    local file=$1
    shift
    # Whatever fio warns about comes before the JSON.
    sed -n '/^{/,$p' "$file" | jq -r --args '
        if (.jobs | length) == 0 then "fio ran no job" else
          (.jobs[] | select(.error != 0) | "job \(.jobname): error \(.error)"),
          ($ARGS.positional[] as $way | .jobs[] | select((.[$way].io_bytes // 0) <= 0) | "job \(.jobname): no byte moved by \($way)")
        end' "$@" || echo "fio's report cannot be read"
}
