import Glibc
import SystemCalls
import Testing

@testable import Programs

@Suite("A program that is started")
struct StartProgramTests {
    /// What a shell's command prints, and its exit status.
    private static func run(
        _ command: String, inheritsEnvironment: Bool = false, ownSession: Bool = false
    ) throws -> (lines: [String], status: Int32) {
        var pipe = try makePipe()
        let null = try FileDescriptor.null()
        let words = ["sh", "-c", command].map { Array($0.utf8CString) }
        let pid = try startProgram(
            "/bin/sh", words, files: [null.raw, pipe.second.raw, null.raw], inheritsEnvironment: inheritsEnvironment,
            ownSession: ownSession)
        pipe.second = try FileDescriptor.null()
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while read(pipe.first.raw, &byte, 1) == 1 { bytes.append(byte) }
        var status: Int32 = 0
        #expect(waitpid(pid, &status, 0) == pid)
        return (String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline).map(String.init), status)
    }

    @Test("has the files that are named, and no other")
    func files() throws {
        // Not closed by exec.
        let stray = fcntl(0, F_DUPFD, 40)
        defer { close(stray) }
        let list = "n=0; while [ $n -lt 64 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n + 1)); done"
        let (lines, status) = try Self.run(list + "; exit 3")
        #expect(lines == ["0", "1", "2"])
        #expect(status == 3 << 8)
    }

    @Test("ignores and blocks no signal, whatever its starter does")
    func signals() throws {
        let number = __libc_current_sigrtmin() + 9
        signal(number, SIG_IGN)
        var blocked = sigset_t()
        sigemptyset(&blocked)
        sigaddset(&blocked, SIGUSR2)
        pthread_sigmask(SIG_BLOCK, &blocked, nil)
        defer {
            pthread_sigmask(SIG_UNBLOCK, &blocked, nil)
            signal(number, SIG_DFL)
        }
        let (lines, _) = try Self.run(
            "while read name mask; do case $name in SigBlk:|SigIgn:) echo $mask;; esac; done </proc/$$/status")
        // glibc leaves its own two signals ignored, 32 and 33; it sets their handlers when it needs them.
        let masks = lines.compactMap { UInt64($0, radix: 16) }.map { $0 & ~0x1_8000_0000 }
        #expect(masks == [0, 0], "\(lines)")
    }

    @Test("has this process's environment or none, and this process's session or its own")
    func surroundings() throws {
        setenv("UBD_PROGRAMS_TEST", "seen", 1)
        defer { unsetenv("UBD_PROGRAMS_TEST") }
        #expect(try Self.run("echo .$UBD_PROGRAMS_TEST").lines == ["."])
        #expect(try Self.run("echo .$UBD_PROGRAMS_TEST", inheritsEnvironment: true).lines == [".seen"])
        let session = "read pid name state parent group session rest </proc/$$/stat; [ $session = $$ ]"
        #expect(try Self.run(session).status == 1 << 8)
        #expect(try Self.run(session, ownSession: true).status == 0)
    }

    @Test("that is not there is not started")
    func missing() throws {
        let error = #expect(throws: SystemError.self) {
            _ = try startProgram("/nowhere/program", [[0]], files: [], inheritsEnvironment: false)
        }
        #expect(error?.errno == ENOENT)
    }
}
