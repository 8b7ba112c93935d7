import BrokerInterface
import Dialing
import Glibc
import Programs
import SystemCalls

/// A `ubd-nbd` that dials for this command, as long as this exists; from `keep` on it lives by itself.
struct DialProcess: ~Copyable {
    private let channel: FileDescriptor
    private let pid: pid_t
    /// What it leaves behind when it is killed becomes a child of this process.
    private let isAdopted: Bool

    /// Starts it.
    ///
    /// - Parameter arguments: words as they were typed, byte by byte.
    init(_ arguments: [[CChar]], _ environment: CommandEnvironment) throws(CommandFailure) {
        let executable = environment.dialer ?? Installation.dialer
        do throws(SystemError) {
            // Without the list of children none could be found.
            let adopts = environment.adoptsChildren && (try? Children.adopt()) != nil
            var pair = try makeMessagePair()
            let process = try Self.spawn(executable, arguments, channel: pair.second.raw)
            // Its death must end the pair.
            pair.second = try FileDescriptor.null()
            (pid, isAdopted) = (process, adopts)
            channel = consume pair.first
        } catch {
            throw CommandFailure(
                .failed, "DialFailed", "\(executable): \(SystemError.message(error.errno))",
                remedy: CommandFailure.limitRemedy(error.errno) ?? "run 'make install' as root: it belongs to ubd")
        }
    }

    /// What it has to say to people goes where this program's errors go.
    private static func spawn(
        _ executable: String, _ arguments: [[CChar]], channel: Int32
    ) throws(SystemError) -> pid_t {
        let null = try FileDescriptor.null()
        return try startProgram(
            executable, [Array("ubd-nbd".utf8CString)] + arguments, files: [null.raw, null.raw, 2, channel],
            inheritsEnvironment: true)
    }

    /// Its arguments. `uri` and `command`: one of both.
    static func words(
        connections: Int, _ options: DialOptions, restarts: Bool, uri: String?, command: [String],
        _ environment: CommandEnvironment
    ) -> [[CChar]] {
        var words = ["--connections", String(connections), "--broker"].map { Array($0.utf8CString) }
        words.append(environment.socketPath.systemPath)
        words += options.words
        if restarts { words.append(Array("--restart-command".utf8CString)) }
        if let uri { words += [Array("--uri".utf8CString), uri.systemPath] }
        if !command.isEmpty { words += [Array("--".utf8CString)] + command.map(\.systemPath) }
        return words
    }

    /// What came of it.
    struct Answer: ~Copyable {
        let export: DialedExport
        let sockets: Sockets
    }

    /// The connected sockets, in the order of the queues.
    struct Sockets: ~Copyable {
        let numbers: [Int32]

        deinit {
            for number in numbers { _ = FileDescriptor(owning: number) }
        }
    }

    /// Waits until there are connections, or the reason why there are none.
    func answer(_ environment: CommandEnvironment) throws(CommandFailure) -> Answer {
        let received = try receive(environment, seconds: environment.dialSeconds, doing: "connecting")
        guard let (bytes, files) = received else { throw failure(environment) }
        let sockets = Sockets(numbers: files)
        let reply: DialReply
        do { reply = try DialReply(bytes: bytes) } catch { throw failure(environment) }
        switch reply {
        case .failed(let failure): throw CommandFailure(failure)
        case .agreed(let export):
            guard sockets.numbers.count == export.connections, export.connections > 0 else {
                throw failure(environment)
            }
            return Answer(export: export, sockets: sockets)
        }
    }

    /// Leaves it with the device; nobody else hears of it afterwards. nil when it does so; else what its user must know.
    func keep(_ order: KeepOrder, _ environment: CommandEnvironment) -> Notice? {
        if (try? send(channel.raw, order.bytes)) != nil {
            let answer = try? receive(environment, seconds: environment.callSeconds, doing: "leaving the device alone")
            if let answer, answer.bytes == KeepOrder.done { return nil }
        }
        let end = end(seconds: 1)
        var message = end.map { "ubd-nbd \($0), so nobody" } ?? "nobody"
        message += " makes its connections again when they are lost: then use 'ubd recover -n \(order.id)'"
        // It is this process's child for a moment still.
        let servers = isAdopted && end != nil ? Children.now : []
        if !servers.isEmpty {
            message +=
                "; its server (process \(servers.map(String.init).joined(separator: ", "))) does not end with the device"
        }
        return Notice(code: "keeper", message: message)
    }

    /// How it ended; nil when it does not within that time.
    private func end(seconds: Int) -> ProcessChange? {
        guard let process = try? ProcessHandle(pid: pid) else { return nil }
        let deadline = Deadline(seconds: seconds)
        while true {
            // Its end can be reported once; a zombie is no child that has anything to serve.
            if let end = try? process.poll() { return end }
            if deadline.hasPassed { return nil }
            usleep(10_000)
        }
    }

    /// It has ended without an answer, or gives one that can not be read. Takes away what it can not take away itself any more.
    private func failure(_ environment: CommandEnvironment) -> CommandFailure {
        guard let end = end(seconds: 2), case .killed = end else {
            return CommandFailure(
                .failed, "DialFailed", "ubd-nbd ended without saying why, or what it said can not be read",
                remedy: "use the ubd and ubd-nbd of one version")
        }
        if isAdopted { Children.end() }
        ServerFolder.removeAll(of: pid)
        return CommandFailure(
            .failed, "DialFailed", "ubd-nbd \(end) before there was a device",
            remedy: "see whether memory ran out ('journalctl -k'), and try again")
    }

    /// nil when it has closed the pair.
    private func receive(
        _ environment: CommandEnvironment, seconds: Int, doing what: String
    ) throws(CommandFailure) -> (bytes: [UInt8], files: [Int32])? {
        let deadline = Deadline(seconds: seconds)
        defer { environment.console.progress(nil) }
        var waited = 0
        var waiting = pollfd(fd: channel.raw, events: Int16(POLLIN), revents: 0)
        while poll(&waiting, 1, deadline.milliseconds()) <= 0 {
            guard !deadline.hasPassed else {
                throw CommandFailure(
                    .failed, "DialFailed", "no connection after \(seconds) s",
                    remedy: "check host and port, and that nothing on the way keeps you from it")
            }
            waited += 1
            environment.console.progress("ubd: \(what), \(waited) s …")
        }
        var bytes = [UInt8](repeating: 0, count: longestDialMessage)
        let received = bytes.withUnsafeMutableBytes { buffer in
            try? receiveWithFiles(channel.raw, into: buffer, maximum: 16, peek: false, wait: false)
        }
        guard let received, received.bytes > 0 else { return nil }
        return (Array(bytes.prefix(received.bytes)), received.files)
    }
}

extension CommandFailure {
    /// Why nothing was dialled.
    init(_ failure: DialFailure) {
        let status: ExitStatus =
            switch failure.kind {
            case .usage: .usage
            case .refused: .notPermitted
            case .host: .hostLacksSomething
            case .unreachable, .unsuitable, .command: .failed
            }
        self.init(status, Self.name(failure.kind), failure.message, remedy: failure.remedy)
    }

    private static func name(_ kind: DialFailure.Kind) -> String {
        switch kind {
        case .usage: "Usage"
        case .unreachable: "ServerNotReachable"
        case .refused: "ServerRefused"
        case .unsuitable: "ServerUnsuitable"
        case .host: "HostLacksSomething"
        case .command: "CommandFailed"
        }
    }
}
