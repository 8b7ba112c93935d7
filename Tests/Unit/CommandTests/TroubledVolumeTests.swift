import Foundation
import Glibc
import SystemCalls
import Testing

@testable import ubd

/// `ubd add -t crypt` while something goes wrong, with the real ubd-crypt. No broker listens: an add that comes so far ends with 6.
@Suite("ubd add -t crypt in trouble")
struct TroubledVolumeTests {
    private let folder = TemporaryFolder()

    private func add(_ arguments: [String], shell: String = "exec \"$0\" \"$@\"") throws -> Program.Result {
        try Program.run(["add", "-t", "crypt"] + arguments, socket: "/nowhere/socket", shell: shell)
    }

    @Test("a volume that is replaced while its passphrase is asked for gets nothing of the other one's header")
    func replaced() throws {
        let (path, key) = try RealVolume.make(in: folder, "disk.luks")
        let (other, _) = try RealVolume.make(in: folder, "other.luks", ["--sector-size", "4096"] + RealVolume.small)
        let script = folder.path + "/ubd-crypt"
        let text = "#!/bin/sh\nmv '\(other)' '\(path)' && exec '\(Installation.unlocker)' \"$@\"\n"
        try Data(text.utf8).write(to: URL(fileURLWithPath: script))
        try call("chmod") { chmod(script, 0o755) }
        let console = Recorder()
        var environment = CommandEnvironment(
            console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: Program.path)
        environment.unlocker = script
        let status = CommandLineTool.run(["add", "-t", "crypt", "-f", path, "--key-file", key], environment)
        let isTold = console.errors.contains { $0.contains("was replaced by another file") }
        #expect(status == 1 && isTold, "\(console.errors)")
    }

    @Test("a name that leads to a FIFO by then makes nobody wait: the file is the one that was looked at")
    func becomesFIFO() throws {
        let (path, key) = try RealVolume.make(in: folder, "disk.luks")
        let script = folder.path + "/ubd-crypt"
        let text = "#!/bin/sh\nrm '\(path)' && mkfifo '\(path)' && exec '\(Installation.unlocker)' \"$@\"\n"
        try Data(text.utf8).write(to: URL(fileURLWithPath: script))
        try call("chmod") { chmod(script, 0o755) }
        let console = Recorder()
        var environment = CommandEnvironment(
            console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: Program.path)
        environment.unlocker = script
        let status = CommandLineTool.run(["add", "-t", "crypt", "-f", path, "--key-file", key], environment)
        #expect(status == 2 && console.errors.contains { $0.contains("is a FIFO") }, "\(status) \(console.errors)")
    }

    @Test("a lock on the header, which everybody who reads it can hold, ends the add with one line")
    func locked() throws {
        let (path, key) = try RealVolume.make(in: folder, "disk.luks")
        let file = open(path, O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        #expect(flock(file, LOCK_EX) == 0)
        let result = try add(["-f", path, "--key-file", key])
        #expect(result.status == 1 && result.errors.contains("is locked by another program"), "\(result)")
        #expect(flock(file, LOCK_SH) == 0)
        #expect(try add(["-f", path, "--key-file", key]).status == 6)
    }

    @Test("too few open files are said to be the reason, and a low soft limit is none")
    func openFiles() throws {
        let (path, key) = try RealVolume.make(in: folder, "disk.luks")
        for number in [14, 20, 31] {
            let result = try add(["-f", path, "--key-file", key], shell: "ulimit -n \(number); exec \"$0\" \"$@\"")
            #expect(result.status == 7 && result.errors.contains("may open \(number) files"), "\(result)")
            #expect(result.errors.split(separator: "\n").count == 1, "\(result)")
        }
        #expect(try add(["-f", path, "--key-file", key], shell: "ulimit -S -n 20; exec \"$0\" \"$@\"").status == 6)
    }

    @Test("a key file may be a descriptor of ubd's: a shell's <(program)", arguments: [3, 5, 6, 9])
    func keyOfShell(number: Int) throws {
        let (path, key) = try RealVolume.make(in: folder, "disk.luks")
        let result = try add(
            ["-f", path, "--key-file", "/dev/fd/\(number)"],
            shell: "exec bash -c 'exec \(number)<\(key); exec \"$0\" \"$@\"' \"$0\" \"$@\"")
        #expect(result.status == 6, "\(result)")
    }

    @Test("ubd-crypt ends with its ubd, however that ends")
    func endsTogether() throws {
        let (path, _) = try RealVolume.make(in: folder, "disk.luks")
        // ubd-crypt waits for the end of the key.
        try call("mkfifo") { mkfifo(folder.path + "/fifo", 0o600) }
        let (process, _, _) = try Program.start(
            ["add", "-t", "crypt", "-f", path, "--key-fd", "7"], socket: "/nowhere/socket",
            shell: "exec bash -c 'exec 7<>\(folder.path)/fifo; exec \"$0\" \"$@\"' \"$0\" \"$@\"")
        defer { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }
        func children() -> [Int32] {
            let text = try? String(
                contentsOfFile: "/proc/\(process.processIdentifier)/task/\(process.processIdentifier)/children",
                encoding: .utf8)
            return (text ?? "").split(separator: " ").compactMap { Int32($0) }
        }
        func eventually(_ condition: () -> Bool) -> Bool {
            for _ in 0..<600 where !condition() { usleep(50_000) }
            return condition()
        }
        #expect(eventually { !children().isEmpty })
        let child = try #require(children().first)
        #expect(eventually { (linkTarget("/proc/\(child)/exe") ?? "").hasSuffix("/ubd-crypt") })
        // Time for its first steps; without them it is found at the channel.
        usleep(200_000)
        kill(process.processIdentifier, SIGKILL)
        #expect(eventually { kill(child, 0) != 0 || isZombie(child) })
    }

    private func isZombie(_ pid: Int32) -> Bool {
        guard let text = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8) else { return true }
        return text.split(separator: ")").last?.hasPrefix(" Z") ?? true
    }
}
