import CShims
import Glibc
import SystemCalls

/// A program that is run for its output, and abandoned when it takes too long: on a device that hangs no signal ends
/// it, and no process waits for it.
struct HelperProcess: ~Copyable {
    private let pid: pid_t
    private let pipe: FileDescriptor

    /// The exit status of a helper that could not become the other user.
    static let isStillRoot = Int32(UBD_CHILD_IS_ROOT)

    /// Starts a program that inherits only the pipe: one that hangs must not keep the caller's terminal or files open.
    /// `arguments` include its name; the environment is empty. `user`: runs it as that user; for root only.
    init(_ executable: String, _ arguments: [String], as user: UInt32? = nil) throws(SystemError) {
        try self.init { (output, null) throws(SystemError) in
            guard let user else {
                return try HelperProcess.spawn(executable, arguments, output: output, null: null)
            }
            try call("start \(executable)") { access(executable, X_OK) }
            return try HelperProcess.withArray(arguments) { (argv) throws(SystemError) in
                let pid = ubd_program_child(executable, argv, Int64(user), null, output)
                guard pid > 0 else { throw SystemError("start \(executable)", -pid) }
                return pid
            }
        }
    }

    /// Starts a process in another way: `start` gets the end of the pipe for the output, and /dev/null.
    init(_ start: (_ output: Int32, _ null: Int32) throws(SystemError) -> pid_t) throws(SystemError) {
        var pipe = try makePipe()
        let null = try FileDescriptor.null()
        pid = try start(pipe.second.raw, null.raw)
        // The helper must be the only process with that end: otherwise its death would go unnoticed.
        pipe.second = null
        self.pipe = consume pipe.first
    }

    /// Its output as text: see `bytes`.
    consuming func output(most: Int, _ deadline: Deadline) throws(SystemError) -> (text: String, status: Int32)? {
        try bytes(most: most, deadline).map { (String(decoding: $0.bytes, as: UTF8.self), $0.status) }
    }

    /// Its output and exit status (-1: a signal ended it), once it has ended or printed more than `most` bytes; nil
    /// when the deadline passes first.
    consuming func bytes(most: Int, _ deadline: Deadline) throws(SystemError) -> (bytes: [UInt8], status: Int32)? {
        var bytes: [UInt8] = []
        while !deadline.hasPassed {
            var waiting = pollfd(fd: pipe.raw, events: Int16(POLLIN), revents: 0)
            guard poll(&waiting, 1, deadline.milliseconds()) > 0 else { continue }
            let file = pipe.raw
            let part = try withUnsafeTemporaryAllocation(byteCount: 16 << 10, alignment: 1) { buffer in
                Result { () throws(SystemError) in
                    let count = try call("read") { read(file, buffer.baseAddress, buffer.count) }
                    return Array(buffer[..<count])
                }
            }.get()
            bytes += part
            if !part.isEmpty, bytes.count <= most { continue }
            if !part.isEmpty { kill(pid, SIGKILL) }
            var status: Int32 = 0
            let pid = pid
            _ = try? call("waitpid") { waitpid(pid, &status, 0) }
            return (bytes, status & 0x7F == 0 ? status >> 8 & 0xFF : -1)
        }
        // A process in an uninterruptible wait stays until the device answers or is deleted.
        kill(pid, SIGKILL)
        return nil
    }

    private static func spawn(
        _ executable: String, _ arguments: [String], output: Int32, null: Int32
    ) throws(SystemError) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, null, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, null, 2)
        posix_spawn_file_actions_addclosefrom_np(&actions, 3)
        // The program must not inherit the signals that this process ignores.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGDEF))
        return try withArray(arguments) { (argv) throws(SystemError) in
            var environment: [UnsafeMutablePointer<CChar>?] = [nil]
            var pid: pid_t = 0
            let result = posix_spawn(&pid, executable, &actions, &attributes, argv, &environment)
            guard result == 0 else { throw SystemError("start \(executable)", result) }
            return pid
        }
    }

    /// Texts for exec: an array of C strings that ends with a null.
    private static func withArray(
        _ texts: [String],
        _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws(SystemError) -> pid_t
    ) throws(SystemError) -> pid_t {
        let array = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>.allocate(capacity: texts.count + 1)
        for (index, text) in texts.enumerated() { array[index] = strdup(text) }
        array[texts.count] = nil
        defer {
            for index in texts.indices { free(array[index]) }
            array.deallocate()
        }
        return try body(array)
    }
}
