import BrokerInterface
import Foundation
import Glibc
import Testing
import Varlink

@testable import SystemCalls
@testable import ubd

@Suite("ubd del")
struct DeleteTests {
    /// Serves the list, then every Delete with `answer`.
    private func broker(
        _ devices: [Device], deletes: Int, _ answer: @escaping @Sendable (DeleteRequest) -> Reply = { _ in Reply() }
    ) -> FakeBroker {
        FakeBroker(connections: 1 + deletes) { connection, call in
            switch try? BrokerCall(call) {
            case .list: connection.send(Reply(parameters: ListReply(devices: devices).json))
            case .delete(let request): connection.send(answer(request))
            default: break
            }
        }
    }

    private func deletes(_ broker: FakeBroker) throws -> [DeleteRequest] {
        try broker.received.compactMap { call in
            if case .delete(let request) = try BrokerCall(call) { request } else { nil }
        }
    }

    @Test("flushes the node in a helper process, then deletes that generation and no other")
    func deletes() throws {
        let folder = TemporaryFolder()
        let node = folder.file("node", bytes: 4096)
        let broker = broker([FakeBroker.device(id: 3, node: node)], deletes: 1)
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == 0)
        #expect(broker.finish())
        #expect(console.output == [] && console.errors == [])
        #expect(try deletes(broker) == [DeleteRequest(id: 3, generation: 43)])
        #expect(try BrokerCall(broker.received[0]) == .list(ListRequest(id: 3)))
    }

    @Test("with --force neither opens nor flushes anything")
    func force() throws {
        let broker = broker([FakeBroker.device(id: 3, state: .stuck, node: "/dev/null")], deletes: 1)
        let console = Recorder()
        var environment = broker.environment(console)
        environment.executable = "/bin/false"
        #expect(CommandLineTool.run(["del", "-n", "3", "--force", "--json"], environment) == 0)
        #expect(console.output == [#"{"deleted":[3]}"#])
        #expect(try deletes(broker) == [DeleteRequest(id: 3, generation: 43, force: true)])
    }

    @Test("goes on when the node is already gone")
    func noNode() throws {
        let broker = broker([FakeBroker.device(id: 3, node: "/nowhere/ublkb3")], deletes: 1)
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(Recorder())) == 0)
        #expect(try deletes(broker).count == 1)
    }

    @Test("does not delete what could not be flushed, and says what would")
    func notFlushed() throws {
        // A directory can not be opened for writing: EISDIR.
        let broker = broker([FakeBroker.device(id: 3, node: "/tmp")], deletes: 0)
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "3"], broker.environment(console)) == 1)
        #expect(
            console.errors == [
                "ubd: open /tmp: Is a directory; mend its file and try again, or give up what is not written with "
                    + "'ubd del -n 3 --force'"
            ])
        #expect(try deletes(broker) == [])
    }

    @Test("gives up a flush that hangs, without hanging itself")
    func hangs() throws {
        let folder = TemporaryFolder()
        // Opening a FIFO for reading alone waits for a writer: as a hung device does, for ever.
        mkfifo(folder.path + "/node", 0o666)
        let broker = broker([FakeBroker.device(id: 3, node: folder.path + "/node", readOnly: true)], deletes: 0)
        let console = Recorder()
        var environment = broker.environment(console)
        environment.flushSeconds = 1
        let start = monotonicNanoseconds()
        #expect(CommandLineTool.run(["del", "-n", "3"], environment) == 1)
        #expect(monotonicNanoseconds() - start < 5_000_000_000)
        #expect(console.errors.first?.contains("could not be flushed within 1 s") == true)
        #expect(console.errors.first?.contains("ubd del -n 3 --force") == true)
    }

    @Test("of a device that is not there ends with 4")
    func noSuchDevice() {
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "-n", "9"], broker([], deletes: 0).environment(console)) == 4)
        #expect(console.errors == ["ubd: you have no device 9; see 'ubd list'"])
    }

    @Test("of all goes on after a failure, tells each, and ends with the first one's status")
    func all() throws {
        let devices = (1...3).map { FakeBroker.device(id: $0, node: "/nowhere/\($0)") }
        let broker = broker(devices, deletes: 3) { request in
            switch request.id {
            case 1: InterfaceError.busy(message: "1 is mounted", remedy: "umount", id: 1, holder: "/mnt").reply
            case 2: InterfaceError.failed(message: "2 failed", remedy: "look", step: "STOP_DEV", errno: 5).reply
            default: Reply()
            }
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["del", "--all"], broker.environment(console)) == 5)
        #expect(try deletes(broker).map(\.id) == [1, 2, 3])
        #expect(console.errors == ["ubd: 2 failed; look", "ubd: 1 is mounted; umount"])
    }

    @Test("understands what its helper says, and nothing else")
    func outcomes() throws {
        let folder = TemporaryFolder()
        func outcome(_ text: String) throws(SystemError) -> DeviceFlush.Outcome {
            let script = folder.path + "/helper"
            try! "#!/bin/sh\nprintf '\(text)'\n".write(toFile: script, atomically: true, encoding: .utf8)
            chmod(script, 0o755)
            return try runFreshScript(script)
        }
        #expect(try outcome("done 0\\n") == .flushed)
        #expect(try outcome("open 16\\n") == .busy)
        #expect(try outcome("open 6\\n") == .noNode)
        #expect(try outcome("open 13\\n") == .failed(step: "open", errno: EACCES))
        #expect(try outcome("fsync 5\\n") == .failed(step: "fsync", errno: EIO))
        for nonsense in ["", "done\\n", "open x\\n", "open 16 16\\n"] {
            #expect(throws: SystemError.self, "\(nonsense)") { try outcome(nonsense) }
        }
        #expect(throws: SystemError.self) {
            try DeviceFlush.run(executable: "/nowhere", node: "x", readOnly: false, deadline: Deadline(seconds: 10))
        }
    }

    @Test("gives its helper nothing that the caller has open: one that hangs must hold nobody's pipe")
    func helperHoldsNothing() throws {
        let folder = TemporaryFolder()
        let script = folder.path + "/helper"
        let result = folder.path + "/result"
        try """
        #!/bin/sh
        numbers=$(/bin/ls /proc/$$/fd | /bin/grep -vx 3)
        names=$(for n in $numbers; do /usr/bin/readlink /proc/$$/fd/$n; done)
        echo "$names" > \(result)
        echo done 0
        """.write(toFile: script, atomically: true, encoding: .utf8)
        chmod(script, 0o755)
        // A descriptor that a careless shell would leave to its children.
        let leaky = dup(2)
        defer { close(leaky) }
        #expect(
            try runFreshScript(script) == .flushed)
        let files = try String(contentsOfFile: result, encoding: .utf8).split(separator: "\n")
        // The shell's own: its script, and at 3 the pipe of $(…).
        let own = files.filter { $0 != script }
        #expect(own.count == 3 && own[0] == "/dev/null" && own[2] == "/dev/null", "\(files)")
        #expect(own.count == 3 && own[1].hasPrefix("pipe:"), "\(files)")
    }
}

@Suite("Who holds a device")
struct DeviceHoldersTests {
    private var machine: FakeMachine {
        FakeMachine(kinds: [
            "/dev/ublkb0": .blockDevice(major: 259, minor: 0), "/dev/ublkb0p1": .blockDevice(major: 259, minor: 7),
            "/dev/sda1": .blockDevice(major: 8, minor: 1),
        ])
    }

    private func holder(_ change: (inout FakeMachine) -> Void) -> String? {
        var machine = machine
        change(&machine)
        return DeviceHolders(host: machine).holder(ofNumber: "259:0")
    }

    @Test("is a mount, found by number and named with its spaces")
    func mount() {
        let holder = holder {
            $0.texts["/proc/self/mountinfo"] = """
                22 1 8:1 / / rw - ext4 /dev/sda1 rw
                40 22 259:0 / /mnt/my\\040disk rw,noatime shared:3 master:1 - ext4 /dev/ublkb0 rw
                """
        }
        #expect(holder == "mounted on /mnt/my disk")
    }

    @Test("is a mount whose file system has a number of its own, found by its source")
    func btrfs() {
        let holder = holder {
            $0.texts["/proc/self/mountinfo"] = "40 22 0:52 / /mnt rw - btrfs /dev/ublkb0 rw\n"
        }
        #expect(holder == "mounted on /mnt")
    }

    @Test("is not somebody who holds another device")
    func others() {
        let holder = holder {
            $0.texts["/proc/self/mountinfo"] =
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 1 0:5 / /proc rw - proc proc rw\nx\n"
            $0.texts["/proc/swaps"] = "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n"
        }
        #expect(holder == nil)
    }

    @Test("is swap, or a driver above it")
    func swapAndDrivers() {
        #expect(
            holder { $0.texts["/proc/swaps"] = "Filename\tType\n/dev/ublkb0   partition\t1048572\t0\t-2\n" }
                == "in use as swap (/dev/ublkb0)")
        #expect(holder { $0.directories["/sys/dev/block/259:0/holders"] = ["dm-0", "dm-1"] } == "held by dm-0, dm-1")
    }

    @Test("is whoever has a partition of it")
    func partition() {
        let holder = holder {
            $0.directories["/sys/dev/block/259:0"] = ["holders", "queue", "ublkb0p1"]
            $0.texts["/sys/dev/block/259:0/ublkb0p1/partition"] = "1\n"
            $0.texts["/sys/dev/block/259:0/ublkb0p1/dev"] = "259:7\n"
            $0.texts["/proc/self/mountinfo"] = "40 22 259:7 / /mnt rw - ext4 /dev/ublkb0p1 rw\n"
        }
        #expect(holder == "mounted on /mnt")
    }

    @Test("is a device-mapper device by the name that people know it by")
    func deviceMapper() {
        let holder = holder {
            $0.directories["/sys/dev/block/259:0/holders"] = ["dm-0"]
            $0.texts["/sys/block/dm-0/dm/name"] = "vault\n"
        }
        #expect(holder == "held by device-mapper device vault (dm-0)")
    }

    @Test("names a process of the caller's that has a file open, and nobody when none has")
    func opener() throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "ubd-proc-\(UUID())")
        defer { try? FileManager.default.removeItem(at: folder) }
        let files = folder.appending(path: "17/fd")
        try FileManager.default.createDirectory(at: files, withIntermediateDirectories: true)
        symlink("/dev/ublkb7", files.appending(path: "3").path)
        try "bash\n".write(to: folder.appending(path: "17/comm"), atomically: false, encoding: .utf8)
        #expect(DeviceOpener.find("/dev/ublkb7", proc: folder.path) == "process 17 (bash)")
        #expect(DeviceOpener.find("/dev/ublkb0", proc: folder.path) == nil)
    }

    @Test("has the octal escapes of its path undone")
    func escapes() {
        #expect(DeviceHolders.unescaped(#"/a\040b\134c\011\012"#) == "/a b\\c\t\n")
        #expect(DeviceHolders.unescaped(#"/a\0"#) == #"/a\0"#)
        #expect(DeviceHolders.unescaped(#"/\777"#) == #"/\777"#)
    }
}

/// Runs a helper that was written a moment ago: a process that another test starts just then may still hold the file open
/// for writing, and the kernel refuses to run it so long.
private func runFreshScript(_ script: String) throws(SystemError) -> DeviceFlush.Outcome {
    let deadline = Deadline(seconds: 10)
    while true {
        do {
            return try DeviceFlush.run(executable: script, node: "x", readOnly: false, deadline: deadline)
        } catch {
            guard error.errno == ETXTBSY else { throw error }
            usleep(10_000)
        }
    }
}
