import Dialing
import Glibc
import Programs
import SystemCalls

/// A server that runs for one device: started as the user, with a listening Unix socket as systemd passes one (sd_listen_fds(3)),
/// in a folder that only the user can enter.
final class ServerCommand {
    /// As it was typed, the program and its arguments: bytes without a NUL.
    let words: [[UInt8]]
    private let socket: ServerSocket
    /// Where the socket is: as bytes without a NUL.
    var socketPath: [UInt8] { socket.path }
    private let attention: Attention
    /// What it prints is passed on.
    var show: (ArraySlice<UInt8>) -> Void
    private var process: ProcessHandle?
    private var output: FileDescriptor?
    /// How it ended; nil as long as it runs.
    private(set) var end: ProcessChange?

    /// What to do when it ends.
    var ended: () -> Attention.Outcome = { .giveUp }

    /// `place`: the folder in which to make that of the socket; nil: as the environment says.
    init(
        _ words: [[UInt8]], _ attention: Attention, in place: String? = nil,
        show: @escaping (ArraySlice<UInt8>) -> Void
    ) throws(DialFailure) {
        self.words = words
        self.attention = attention
        self.show = show
        if let here = getcwd(nil, 0) {
            defer { free(here) }
            folder = Array(UnsafeBufferPointer(start: here, count: strlen(here) + 1))
        } else {
            folder = Array(".".utf8CString)
        }
        try Self.checkKnown(words.map { String(decoding: $0, as: UTF8.self) })
        do throws(SystemError) {
            socket = try ServerSocket(in: place.map { [$0] } ?? ServerFolder.usualPlaces)
        } catch {
            throw DialFailure(
                .command, "no socket for the server can be made: \(error)",
                remedy: "set XDG_RUNTIME_DIR or TMPDIR to a folder of yours with room and a short path")
        }
    }

    /// Its number, once it was started.
    var pid: pid_t? { process?.pid }

    /// The name of the program, for messages.
    var name: String { PercentEncoding.readable(words[0]) }

    // MARK: Its life

    /// Starts it. What an earlier one has left running ends first: two servers would write to one disk.
    func start() throws(DialFailure) {
        stop()
        do throws(SystemError) {
            var pipe = try makePipe()
            let null = try FileDescriptor.null()
            let pid = try spawn(null: null.raw, output: pipe.second.raw)
            // Its death must end the pipe.
            pipe.second = null
            // Its number may be another file's from here on.
            if let before = output?.raw { attention.remove(before) }
            process = try ProcessHandle(pid: pid)
            output = consume pipe.first
            hasStarted = true
        } catch {
            throw DialFailure(
                .command, "\(name) can not be started: \(SystemError.message(error.errno))",
                remedy: Self.remedy(error.errno))
        }
        end = nil
        watch()
    }

    static func remedy(_ errno: Int32) -> String {
        switch errno {
        case EMFILE: "allow more open files, as in 'ulimit -n 64'"
        case ENFILE: "let the administrator allow more open files (fs.file-max)"
        case ENOENT: "this host has no /bin/sh, by which it would be started"
        default: "allow more processes ('ulimit -u'), or end some"
        }
    }

    /// LISTEN_PID must be the process's own number, which only it knows: a shell sets it and becomes the server. Whoever runs `ubd`
    /// may have got sockets itself: what was said of those is not true of this one.
    static let shell = [
        "sh", "-c",
        "[ -z \"$1\" ] || cd \"$1\" || exit; shift; unset LISTEN_FDNAMES LISTEN_PIDFDID; LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; "
            + "exec \"$@\"",
        "ubd",
    ]

    /// Where it is started, also a second time: by then this process has left the folder in which the names of the command were typed.
    /// A path, since the folder must not be kept in use. "." where it has no path.
    private let folder: [CChar]
    /// The first start finds this process still there: a path may lead through folders that this user can not enter.
    private var hasStarted = false

    private func spawn(null: Int32, output: Int32) throws(SystemError) -> pid_t {
        // Not even "cd .": a shell goes there by the whole name.
        let place = hasStarted ? folder : Array("".utf8CString)
        let words =
            Self.shell.map { Array($0.utf8CString) } + [place] + words.map { $0.map(CChar.init(bitPattern:)) + [0] }
        // The listening socket has the number 3 (SD_LISTEN_FDS_START).
        return try startProgram(
            "/bin/sh", words, files: [null, output, output, socket.listener.raw], inheritsEnvironment: true,
            ownSession: true)
    }

    private func watch() {
        if let file = process?.file.raw {
            attention.add(file) { [unowned self] in
                guard let change = try? process?.poll() else { return .goOn }
                end = change
                readOutput()
                attention.remove(file)
                return ended()
            }
        }
        if let file = output?.raw { attention.add(file) { [unowned self] in readOutput() } }
    }

    /// It may print faster than that is passed on, and must not keep everything else from its turn.
    private static let readsInARow = 16

    @discardableResult
    private func readOutput() -> Attention.Outcome {
        guard let file = output?.raw else { return .finished }
        var bytes = [UInt8](repeating: 0, count: 4096)
        var waiting = pollfd(fd: file, events: Int16(POLLIN), revents: 0)
        for _ in 0..<Self.readsInARow where poll(&waiting, 1, 0) > 0 {
            let count = read(file, &bytes, bytes.count)
            if count <= 0 { return .finished }
            show(bytes[..<count])
        }
        return .goOn
    }

    /// Ends it and waits: politely first, since a server may have something to write. Then it ends the processes that it has started
    /// (its process group): a command that is a script ends before the server in it.
    func stop(within seconds: Int = 10) {
        guard process != nil else { return }
        let before = ended
        ended = { .giveUp }
        defer { ended = before }
        for signal in [SIGTERM, SIGKILL] where end == nil {
            try? process?.send(signal)
            let deadline = Deadline(seconds: seconds)
            // Something else may give up: that is no reason to let it have less time.
            while end == nil, !deadline.hasPassed { try? attention.pause(deadline) }
        }
        if end != nil { endGroup(within: seconds) }
    }

    private func endGroup(within seconds: Int) {
        for signal in [SIGTERM, SIGKILL] {
            guard sendToGroup(signal), signal == SIGTERM else { return }
            let deadline = Deadline(seconds: seconds)
            while sendToGroup(0), !deadline.hasPassed {
                // Nothing tells when a process ends that another one has started.
                try? attention.pause(Deadline(milliseconds: 20))
            }
        }
    }

    /// False when nobody of its group is there any more.
    private func sendToGroup(_ signal: Int32) -> Bool { process?.sendToGroup(signal) ?? false }

    /// Why nobody answers at the socket any more.
    var failure: DialFailure? {
        guard let end else { return nil }
        // What a shell's exec ends with when there is no such program, or it can not be run.
        // A server may also end so by itself.
        if case .exited(let status) = end, status == 126 || status == 127 {
            return DialFailure(
                .command, "\(name) can not be started (status \(status))",
                remedy: "check its name, and that it is installed ('command -v')")
        }
        return DialFailure(
            .command, "\(name) \(end) before a device was made of it",
            remedy: "see what it printed; it must stay in the foreground and take its socket as systemd gives it")
    }

    // MARK: Servers that are known

    /// It carries out what it has received on a connection before it closes it (`Barrier`).
    var finishesConnections: Bool { Self.program(words.map { String(decoding: $0, as: UTF8.self) }) != "qemu-nbd" }

    private static func program(_ words: [String]) -> Substring? { words.first?.split(separator: "/").last }

    /// qemu-nbd ends when its first client leaves, so that a connection could never be made again.
    static func checkKnown(_ words: [String]) throws(DialFailure) {
        guard program(words) == "qemu-nbd" else { return }
        let letters = words.dropFirst().filter { $0.hasPrefix("-") && !$0.hasPrefix("--") }
        if words.contains("--fork") {
            throw DialFailure(
                .usage, "qemu-nbd goes into the background with --fork, where ubd does not find it",
                remedy: "leave --fork out")
        }
        guard words.contains("--persistent") || letters.contains(where: { $0.dropFirst().first == "t" }) else {
            throw DialFailure(
                .usage, "qemu-nbd ends when its first client leaves, so a lost connection could not be made again",
                remedy: "add -t, and -e 0 for several connections, as in '-- qemu-nbd -t -e 0 -f qcow2 disk.qcow2'")
        }
    }
}
