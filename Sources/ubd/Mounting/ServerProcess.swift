import Glibc
import Programs
import SystemCalls

/// A FUSE server from its start until it has mounted: then it leaves its parent, and lives by itself.
struct ServerProcess: ~Copyable {
    private let pid: pid_t
    private let name: String
    private let remedy: String

    /// Starts it. What it prints goes where this program's errors go. `remedy`: for a file system that it does not serve.
    init(_ executable: String, _ words: [[CChar]], name: String, remedy: String) throws(CommandFailure) {
        do throws(SystemError) {
            let null = try FileDescriptor.null()
            pid = try startProgram(
                executable, words, files: [null.raw, 2, 2], inheritsEnvironment: true, ownSession: true)
        } catch {
            throw CommandFailure(
                error, remedy: CommandFailure.limitRemedy(error.errno) ?? "see whether '\(executable)' can be run")
        }
        self.name = name
        self.remedy = remedy
    }

    /// Waits until the first process has ended, as a server does when its mount is there. Ends it when that takes too long, or when a
    /// signal has come.
    consuming func waitUntilMounted(_ environment: CommandEnvironment) throws(CommandFailure) {
        let deadline = Deadline(seconds: environment.mountSeconds)
        let start = monotonicNanoseconds()
        defer { environment.console.progress(nil) }
        var status: Int32 = 0
        while waitpid(pid, &status, WNOHANG) == 0 {
            if environment.isInterrupted() || deadline.hasPassed {
                end()
                if environment.isInterrupted() { throw Interruption.failure }
                throw CommandFailure(
                    .failed, "Hangs", "\(name) has not mounted it within \(deadline.seconds) s",
                    remedy: remedy)
            }
            usleep(20_000)
            let waited = (monotonicNanoseconds() - start) / 1_000_000_000
            if waited > 0 { environment.console.progress("ubd: waiting for \(name), \(waited) s …") }
        }
        guard status == 0 else {
            let how = status & 0x7F == 0 ? "with status \(status >> 8 & 0xFF)" : "by \(signalName(status & 0x7F))"
            throw CommandFailure(
                .failed, "NotMounted", "\(name) ended \(how), and nothing is mounted; what it printed says why",
                remedy: remedy)
        }
    }

    /// A server that waits for a device in the kernel ends later: nobody waits for it longer than a second.
    private func end() {
        // With all that it has started: it leads a group of its own.
        kill(-pid, SIGKILL)
        let deadline = Deadline(seconds: 1)
        while waitpid(pid, nil, WNOHANG) == 0, !deadline.hasPassed { usleep(10_000) }
    }
}

/// Takes a FUSE mount away as the user, by fusermount3(1).
enum Unmount {
    /// nil: done; else what fusermount said.
    ///
    /// - Parameter lazily: also when it is in use: for a mount that nobody was told of.
    static func run(_ place: [UInt8], lazily: Bool = false, seconds: Int) throws(CommandFailure) -> String? {
        let program = try FileSystemServer.unmounter()
        let options = lazily ? ["fusermount", "-u", "-z", "--"] : ["fusermount", "-u", "--"]
        let words = options.map { Array($0.utf8CString) } + [place.map(CChar.init(bitPattern:)) + [0]]
        do throws(SystemError) {
            let helper = try HelperProcess { (output, null) throws(SystemError) in
                try startProgram(program, words, files: [null, output, output], inheritsEnvironment: true)
            }
            guard let ended = try helper.output(most: 16 << 10, Deadline(seconds: seconds)) else {
                return "it has not ended within \(seconds) s"
            }
            if ended.status == 0 { return nil }
            let text = String(ended.text.split(separator: "\n").joined(separator: "; ").prefix(300))
            return text.isEmpty ? "fusermount ended with status \(ended.status)" : text
        } catch {
            throw CommandFailure(error, remedy: CommandFailure.limitRemedy(error.errno) ?? "try again")
        }
    }
}
