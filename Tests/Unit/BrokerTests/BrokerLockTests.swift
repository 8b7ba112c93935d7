import Foundation
import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("The lock that keeps a second broker away")
struct BrokerLockTests {
    /// A process that has the lock on bytes of a file. Locks of fcntl(2) of one process never refuse each other, so it takes
    /// another one.
    private final class Holder {
        let process = Process()

        init(_ path: String, _ first: Int, _ count: Int) throws {
            process.executableURL = URL(fileURLWithPath: "/usr/bin/python3")
            process.arguments = [
                "-c",
                "import fcntl,sys,time; f=open('\(path)','r+b'); fcntl.lockf(f,fcntl.LOCK_EX,\(count),\(first)); print(1,flush=True); time.sleep(100)",
            ]
            let output = Pipe()
            process.standardOutput = output
            try process.run()
            _ = output.fileHandleForReading.readData(ofLength: 1)
        }

        func end() {
            // SIGTERM may be blocked here, and so in its children.
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
        }
    }

    private func file() throws -> (host: Host, path: String) {
        let host = try Host()
        let path = host.folder + "/lock"
        try FileDescriptor.open(path, O_RDWR | O_CREAT, mode: 0o600).writeAll([])
        return (host, path)
    }

    private func message(_ path: String) -> String? {
        do {
            _ = try BrokerLock.take(path, patience: 100)
            return nil
        } catch { return (error as? StartupRefusal)?.message ?? "\(error)" }
    }

    @Test(
        "refuses while a process has it that lives, whichever byte, and names that process",
        arguments: [(0, 1), (5, 1), (0, 0)])
    func refuses(_ first: Int, _ count: Int) throws {
        let (host, path) = try file()
        let holder = try Holder(path, first, count)
        let text = try #require(message(path))
        #expect(text.contains("another ubd-broker runs already: process \(holder.process.processIdentifier) (python3)"))
        // A stopped broker is no reason to take over: it may continue.
        kill(holder.process.processIdentifier, SIGSTOP)
        var stopped = try #require(message(path))
        for _ in 0..<1000 where !stopped.contains("is stopped") {
            usleep(10_000)
            stopped = try #require(message(path))
        }
        #expect(
            stopped.contains("is stopped (state T") && stopped.contains("kill -9 \(holder.process.processIdentifier)"))
        kill(holder.process.processIdentifier, SIGCONT)
        holder.end()
        #expect(message(path) == nil)
        withExtendedLifetime(host) {}
    }

    @Test("finds the locks of others, each with its process and bytes, and not its own")
    func finds() throws {
        let (host, path) = try file()
        let holders = [try Holder(path, 0, 1), try Holder(path, 7, 2)]
        let own = try FileDescriptor.open(path, O_RDWR)
        #expect(try lockByte(3, of: own))
        #expect(try !lockByte(7, of: own))
        let found = try locks(on: own)
        #expect(found.map(\.first) == [0, 7] && found.map(\.count) == [1, 2])
        #expect(found.map(\.pid) == holders.map(\.process.processIdentifier))
        for holder in holders { holder.end() }
        #expect(try locks(on: own) == [])
        withExtendedLifetime(host) {}
    }
}

@Suite("What /proc tells of a process that may hang")
struct ProcessStateTests {
    private func state(_ letter: String, flags: UInt64, pending: String = "0", shared: String = "0") -> ProcessState? {
        let stat = "17 (a) (b c) \(letter) 1 17 17 0 -1 \(flags) 1 0 0 0 5 6 0 0 20 0 1 0 4711 1 2 3"
        let status = "Name:\ta\nSigQ:\t0/1\nSigPnd:\t\(pending)\nShdPnd:\t\(shared)\nSigBlk:\tffffffffffffffff\n"
        return ProcessState(stat: Array(stat.utf8), status: Array(status.utf8))
    }

    @Test("a process that lives is not past: running, sleeping, hanging, stopped, with other signals pending")
    func lives() {
        for letter in ["R", "S", "D", "T"] {
            let state = state(letter, flags: 0x400000, pending: "0000000000004001", shared: "fffffffffffffeff")
            #expect(state?.isPast == false && state?.name == "a) (b c" && state?.startTime == 4711)
        }
    }

    @Test("one for which SIGKILL is pending, or that is on its way out, is past")
    func past() {
        #expect(state("D", flags: 0x400000, pending: "0000000000000100")?.isPast == true)
        #expect(state("D", flags: 0x400000, shared: "0000000000000100")?.isPast == true)
        #expect(state("D", flags: 0x400004)?.isPast == true)
        #expect(state("Z", flags: 0x400000)?.isPast == true)
        #expect(state("S", flags: 0x400010)?.isKernelHelper == true)
        #expect(
            state("D", flags: 0x400004)?.words(place: "request_wait_answer")
                == "waits in the kernel, where no signal wakes it (state D, in request_wait_answer); it was killed and has not ended yet"
        )
    }

    @Test(
        "nonsense is nothing",
        arguments: ["", "17", "17 (a", "17 (a) S 1 2", "17 (a) S 1 17 17 0 -1 x 1 0 0 0 5 6 0 0 20 0 1 0 4711"])
    func nonsense(_ text: String) {
        #expect(ProcessState(stat: Array(text.utf8), status: []) == nil)
    }

    @Test("this process is not past, and one that there is not can't be told")
    func real() {
        #expect(ProcessState(of: "self")?.isPast == false)
        #expect(!isProcessPast(getpid()))
        #expect(!isProcessPast(Int32.max))
    }
}
