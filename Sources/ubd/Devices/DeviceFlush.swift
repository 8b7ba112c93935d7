import Glibc
import SystemCalls

/// Opens a block device for oneself alone and flushes it, in a helper process: on a device that hangs either call
/// waits for ever and no signal ends it. A thread would not do, since the whole program could not end before it.
struct DeviceFlush {
    /// How it went.
    enum Outcome: Equatable {
        case flushed
        /// Somebody else has it.
        case busy
        /// There is no such block device any more.
        case noNode
        /// A call failed; `step` is "open" or "fsync".
        case failed(step: String, errno: Int32)
        case timedOut
    }

    /// What the helper says on its standard output, as one line: the step and the errno (0: all is done).
    static func report(step: String, errno: Int32) -> String { "\(step) \(errno)\n" }

    /// What the helper does, in its own process.
    static func perform(node: String, readOnly: Bool) -> String {
        // O_EXCL on a block device: EBUSY when it is mounted, swap, or held by another driver (open(2)).
        let fd = open(node, (readOnly ? O_RDONLY : O_RDWR) | O_EXCL | O_CLOEXEC)
        guard fd >= 0 else { return report(step: "open", errno: errno) }
        guard readOnly || fsync(fd) == 0 else { return report(step: "fsync", errno: errno) }
        Glibc.close(fd)
        return report(step: "done", errno: 0)
    }

    /// Runs the helper and waits for it, at most until the deadline.
    ///
    /// - Parameter executable: this program.
    static func run(
        executable: String, node: String, readOnly: Bool, deadline: Deadline
    ) throws(SystemError) -> Outcome {
        var pipe = try makePipe()
        let child = try spawn(
            executable, ["ubd", FlushDeviceCommand._commandName] + (readOnly ? ["--read-only"] : []) + ["--", node],
            output: pipe.second.raw)
        close(writingEndOf: &pipe)
        guard let line = try readLine(pipe.first.raw, deadline) else {
            // In an uninterruptible wait it stays until the device answers or is deleted; nobody waits for it.
            kill(child, SIGKILL)
            return .timedOut
        }
        var status: Int32 = 0
        _ = try? call("waitpid") { waitpid(child, &status, 0) }
        return try outcome(line)
    }

    private static func outcome(_ line: String) throws(SystemError) -> Outcome {
        let words = line.split(whereSeparator: \.isWhitespace)
        guard words.count == 2, let number = Int32(words[1]) else { throw SystemError("run the helper", EPROTO) }
        switch (words[0], number) {
        case ("done", 0): return .flushed
        case ("open", EBUSY): return .busy
        case ("open", ENOENT), ("open", ENXIO), ("open", ENODEV): return .noNode
        case (let step, let number): return .failed(step: String(step), errno: number)
        }
    }

    /// The helper must be the only one with that end, or its death would not be seen.
    private static func close(writingEndOf pipe: inout DescriptorPair) {
        let null = Glibc.open("/dev/null", O_WRONLY | O_CLOEXEC)
        if null >= 0 { pipe.second = FileDescriptor(owning: null) }
    }

    /// Reads until the end; nil when the deadline passes first.
    private static func readLine(_ fd: Int32, _ deadline: Deadline) throws(SystemError) -> String? {
        var bytes: [UInt8] = []
        while !deadline.hasPassed {
            var waiting = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
            guard poll(&waiting, 1, deadline.milliseconds()) > 0 else { continue }
            var chunk = [UInt8](repeating: 0, count: 256)
            let count = try call("read") { chunk.withUnsafeMutableBytes { read(fd, $0.baseAddress, $0.count) } }
            if count == 0 || bytes.count > 1024 { return String(decoding: bytes, as: UTF8.self) }
            bytes += chunk.prefix(count)
        }
        return nil
    }

    /// Starts the helper with nothing of ours but the pipe: a helper that hangs must not keep the caller's terminal
    /// or pipe open.
    private static func spawn(
        _ executable: String, _ arguments: [String], output: Int32
    ) throws(SystemError) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        posix_spawn_file_actions_addclosefrom_np(&actions, 3)
        var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for pointer in argv { free(pointer) } }
        var environment: [UnsafeMutablePointer<CChar>?] = [nil]
        var pid: pid_t = 0
        let result = posix_spawn(&pid, executable, &actions, nil, &argv, &environment)
        guard result == 0 else { throw SystemError("start \(executable)", result) }
        return pid
    }
}
