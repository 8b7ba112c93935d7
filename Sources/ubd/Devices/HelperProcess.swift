import CShims
import Glibc
import Programs
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
            let words = arguments.map { Array($0.utf8CString) }
            guard let user else {
                return try startProgram(executable, words, files: [null, output, null], inheritsEnvironment: false)
            }
            try call("start \(executable)") { access(executable, X_OK) }
            return try withWords(words) { (argv) throws(SystemError) in
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
            guard let status = end(deadline) else { break }
            return (bytes, status)
        }
        // A process in an uninterruptible wait stays until the device answers or is deleted.
        kill(pid, SIGKILL)
        return nil
    }

    /// Its exit status, once it has ended (-1: a signal ended it); nil when the deadline passes first: one that has closed its
    /// output may run on.
    private func end(_ deadline: Deadline) -> Int32? {
        var status: Int32 = 0
        var pause: UInt32 = 100
        while true {
            let ended = waitpid(pid, &status, WNOHANG)
            if ended != 0, ended == pid || errno != EINTR { return status & 0x7F == 0 ? status >> 8 & 0xFF : -1 }
            if deadline.hasPassed { return nil }
            usleep(pause)
            pause = min(pause * 2, 20_000)
        }
    }
}
