import BrokerInterface
import CShims
import Foundation
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd add")
struct AddTests {
    @Test("sends the call, parks the buffered file and then the direct one, and prints the device")
    func addsLoop() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 1 << 20)
        let parked = Mutex<[(flags: Int32, inode: UInt)]>([])
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) {
                var status = stat()
                fstat(fd, &status)
                parked.withLock { $0.append((fcntl(fd, F_GETFL), UInt(status.st_ino))) }
                close(fd)
            }
            connection.send(AddReply.added(FakeBroker.device(), notices: []).reply)
        }
        let console = Recorder()
        let status = CommandLineTool.run(
            [
                "add", "-t", "loop", "-f", file, "-n", "0", "-q", "2", "-d", "64", "--max-io-size", "64K", "--size",
                "512K",
            ],
            broker.environment(console))
        #expect(status == 0)
        #expect(broker.finish())
        #expect(console.output == ["/dev/ubdb0"])
        #expect(console.errors == [])
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        #expect(
            request
                == AddRequest(
                    target: "loop", id: 0, queues: 2, depth: 64, maxIOBytes: 65536, fileName: file,
                    options: [OptionValue("size", "524288")]))
        let files = parked.withLock { $0 }
        try #require(files.count == 2)
        #expect(files[0].inode == files[1].inode)
        #expect(files[0].flags & O_DIRECT == 0)
        #expect(files[1].flags & O_DIRECT != 0)
        #expect(files[0].flags & O_NONBLOCK == 0)
        // On tmpfs, where reads and writes never wait, O_NONBLOCK tells io_uring so.
        #expect((files[1].flags & O_NONBLOCK != 0) == isInMemory(file))
        for file in files {
            #expect(file.flags & O_ACCMODE == O_RDWR)
            #expect(file.flags & O_APPEND == 0)
        }
    }

    @Test("of a memory disk parks a memfd of the disk's size, sealed against any other, and sends no name of it")
    func addsMemory() throws {
        let parked = Mutex<[(seals: Int32, size: Int64, blocks: Int64, flags: Int32, inode: UInt)]>([])
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) {
                var status = stat()
                fstat(fd, &status)
                // F_GET_SEALS.
                let seals = fcntl(fd, 1034)
                let flags = fcntl(fd, F_GETFL)
                parked.withLock {
                    $0.append((seals, Int64(status.st_size), Int64(status.st_blocks), flags, UInt(status.st_ino)))
                }
                close(fd)
            }
            connection.send(
                AddReply.added(FakeBroker.device(target: "memory", file: nil), notices: []).reply)
        }
        let console = Recorder()
        let status = CommandLineTool.run(["add", "-t", "memory", "--size", "1G"], broker.environment(console))
        #expect(status == 0 && console.errors == [])
        #expect(broker.finish())
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        #expect(request == AddRequest(target: "memory", queues: 1, options: [OptionValue("size", "1073741824")]))
        let files = parked.withLock { $0 }
        // Without direct I/O on tmpfs (before Linux 6.6) there is no second one.
        try #require(files.count == 1 || files.count == 2)
        for file in files {
            // SEAL, SHRINK and GROW, and no seal against writing; F_SEAL_EXEC may be there.
            #expect(file.seals & ~0x20 == 7)
            #expect(file.size == 1 << 30 && file.blocks == 0 && file.inode == files[0].inode)
            #expect(file.flags & O_ACCMODE == O_RDWR)
        }
        #expect(files[0].flags & O_DIRECT == 0 && files.dropFirst().allSatisfy { $0.flags & O_DIRECT != 0 })
    }

    @Test("says when the device is not in the /dev of the one who added it, as in a container")
    func noNodeHere() throws {
        for (node, isTold) in [("/dev/ublkb0", false), ("/dev/ublkb5", true)] {
            let broker = FakeBroker { connection, _ in
                connection.send(
                    AddReply.added(FakeBroker.device(target: "null", node: node, file: nil), notices: []).reply)
            }
            let console = Recorder()
            #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 0)
            #expect(broker.finish())
            #expect(console.errors.contains { $0.contains("is on the host") } == isTold)
        }
    }

    @Test("with --buffered parks one file and says so in the options")
    func buffered() throws {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 4096)
        let count = Mutex(0)
        let broker = FakeBroker { connection, _ in
            let files = connection.askForFiles(1)
            count.withLock { $0 = files.count }
            for fd in files { close(fd) }
            connection.send(AddReply.added(FakeBroker.device(), notices: []).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "loop", "-f", file, "--buffered"], broker.environment(console)) == 0)
        #expect(count.withLock { $0 } == 1)
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        #expect(request.options == [OptionValue("buffered", "true")])
    }

    @Test("of a target without files needs one reply")
    func addsNull() throws {
        let broker = FakeBroker { connection, _ in
            let device = FakeBroker.device(id: 7, target: "null", file: nil)
            connection.send(
                AddReply.added(device, notices: [Notice(code: "queues", message: "2 queues instead of 64")]).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "--target", "null"], broker.environment(console)) == 0)
        #expect(console.output == ["/dev/ubdb7"])
        #expect(console.errors == ["ubd: note: 2 queues instead of 64"])
        let device = FakeBroker.device(id: 7, target: "null", file: nil)
        #expect(console.asides == ["ubd: " + AddCommand.summary(device)])
    }

    @Test("tells whoever looks what the device became, the mode by name")
    func summary() {
        var device = FakeBroker.device(target: "loop", file: "disk.img")
        device.sizeBytes = 64 << 20
        device.blockSize = 4096
        device.mode = .batchZeroCopy
        device.queues = 2
        device.depth = 64
        device.readOnly = true
        device.buffered = false
        device.recovery = .queue
        #expect(
            AddCommand.summary(device) == "loop disk.img, 64 MiB in blocks of 4096, read-only, mode batch-zero-copy, "
                + "2 queues of 64 requests, recovery queue")
    }

    @Test("prints the node when something else has the link's name")
    func noLink() {
        let broker = FakeBroker { connection, _ in
            var device = FakeBroker.device(id: 7, target: "null", file: nil)
            device.link = nil
            connection.send(AddReply.added(device, notices: []).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 0)
        #expect(console.output == ["/dev/ublkb7"])
    }

    @Test("prints the device and the notices as JSON on request")
    func json() throws {
        let broker = FakeBroker { connection, _ in
            connection.send(
                AddReply.added(FakeBroker.device(target: "null"), notices: [Notice(code: "c", message: "m")]).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null", "--json"], broker.environment(console)) == 0)
        let printed = try JSON(parsing: console.output.joined())
        #expect(
            try AddReply(parameters: printed)
                == .added(FakeBroker.device(target: "null"), notices: [Notice(code: "c", message: "m")]))
    }

    @Test(
        "tells the broker's errors in one line and by its exit status",
        arguments: [
            (InterfaceError.notPermitted(message: "no", remedy: "ask", rule: nil), 3),
            (.quotaReached(message: "no", remedy: "ask", limit: "maxDevices", value: 8), 3),
            (.limitReached(message: "no", remedy: "later", limit: "user-connections", value: 16), 3),
            (.invalidOption(message: "size can not be 0", remedy: "give more", option: "size", value: "0"), 2),
            (.badFile(message: "no", remedy: "ask", index: 0), 2), (.idInUse(message: "no", remedy: "ask", id: 1), 5),
            (.noSuchDevice(message: "no", remedy: "ask", id: 1), 4),
            (.busy(message: "no", remedy: "ask", id: 1, holder: "x"), 5),
            (.kernelUnsupported(message: "no", remedy: "ask", feature: "x"), 7),
            (.failed(message: "no", remedy: "ask", step: "ADD_DEV", errno: 5), 1), (.permissionDenied, 3),
            (.methodNotFound(method: "a.b.C"), 1), (.invalidParameter(parameter: "id"), 1),
        ] as [(InterfaceError, Int32)])
    func errors(error: InterfaceError, status: Int32) throws {
        let broker = FakeBroker { connection, _ in connection.send(error.reply) }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null", "--json"], broker.environment(console)) == status)
        try #require(console.errors.count == 1 && console.output.count == 1)
        #expect(console.errors[0].hasPrefix("ubd: ") && console.errors[0].contains("; "))
        let json = try JSON(parsing: console.output[0])
        #expect(json["error"] == .string(error.name))
        #expect(json["exit"] == .integer(Int64(status)))
        if case .invalidOption = error { #expect(console.errors == ["ubd: --size can not be 0; give more"]) }
    }

    @Test("never repeats to the terminal what could steer it")
    func hostileText() {
        let broker = FakeBroker { connection, _ in
            connection.send(
                InterfaceError.failed(message: "a\u{1B}[2Jb\nc\u{202E}", remedy: "x\ry", step: "s", errno: nil).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 1)
        #expect(console.errors == ["ubd: a?[2Jb?c?; x?y"])
    }

    @Test("fails cleanly when the broker does not keep to the protocol")
    func brokenBroker() {
        let replies: [@Sendable (inout FakeBroker.Connection) -> Void] = [
            { $0.send(bytes: Array("{]\0".utf8)) },
            { $0.send(Reply()) },
            { $0.send(Reply(parameters: .record([("files", 1), ("parking", 0)]), continues: true)) },
            { $0.send(Reply(parameters: .record([("files", 1), ("parking", 0)]))) },
            { $0.send(Reply(error: "org.example.Nope")) },
            { $0.send(AddReply.files(count: 1, parking: 0).reply, files: [0, 0]) },
            { $0.send(bytes: [UInt8](repeating: 0x20, count: 5 << 20)) },
        ]
        for (index, reply) in replies.enumerated() {
            let broker = FakeBroker { connection, _ in reply(&connection) }
            let console = Recorder()
            #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 1, "reply \(index)")
            #expect(console.errors.count == 1)
        }
    }

    @Test("takes a file only with the first byte of a reply")
    func lateFile() {
        let broker = FakeBroker { connection, _ in
            let message = AddReply.files(count: 1, parking: 0).reply.message
            connection.send(bytes: Array(message.prefix(10)))
            usleep(200_000)
            connection.send(bytes: Array(message.dropFirst(10)), files: [0])
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 1)
        #expect(console.errors.first?.contains("files where none belong") == true)
    }

    @Test("refuses a second request for files")
    func twice() {
        let folder = TemporaryFolder()
        let file = folder.file("1.img", bytes: 4096)
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(2) { close(fd) }
            connection.send(AddReply.files(count: 1, parking: 0).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "loop", "-f", file], broker.environment(console)) == 1)
        #expect(console.errors.count == 1)
    }

    @Test("says so when the broker is gone, and when it does not answer")
    func unreachable() {
        let console = Recorder()
        let closing = FakeBroker { _, _ in }
        #expect(CommandLineTool.run(["add", "-t", "null"], closing.environment(console)) == 6)
        #expect(closing.finish())
        #expect(CommandLineTool.run(["add", "-t", "null"], closing.environment(console)) == 6)
        let silent = FakeBroker { connection, _ in _ = connection.waitForEnd() }
        var environment = silent.environment(console)
        environment.addSeconds = 1
        #expect(CommandLineTool.run(["add", "-t", "null"], environment) == 1)
        #expect(silent.finish(), "the connection must be closed, so that the broker undoes")
        #expect(console.errors.count == 3)
        #expect(console.errors[0].contains("closed the connection"))
        #expect(console.errors[1].contains("Connection refused"))
        #expect(console.errors[2].contains("did not answer within 1 s"))
    }

    @Test("shows progress when it takes longer than a second")
    func progress() {
        let broker = FakeBroker { connection, _ in
            usleep(2_500_000)
            connection.send(AddReply.added(FakeBroker.device(target: "null"), notices: []).reply)
        }
        let console = Recorder()
        #expect(CommandLineTool.run(["add", "-t", "null"], broker.environment(console)) == 0)
        #expect(console.progressLines.first == "ubd: adding the device, 1 s …")
    }

    @Test("asks for a file when the target needs one and refuses one that it does not")
    func fileNeeded() {
        let console = Recorder()
        let environment = CommandEnvironment(
            console: console, socketPath: "/nowhere", host: FakeMachine.healthy, executable: "")
        #expect(CommandLineTool.run(["add", "-t", "loop"], environment) == 2)
        #expect(CommandLineTool.run(["add", "-t", "null", "-f", "x"], environment) == 2)
        #expect(console.errors[0] == "ubd: target loop needs a file; name it with --file")
        #expect(console.errors[1].contains("takes no file"))
        #expect(CommandLineTool.run(["add", "-t", "null", "--shared"], environment) == 2)
        #expect(console.errors[2].contains("nothing to share"))
        #expect(CommandLineTool.run(["add", "-t", "loop", "-f", ""], environment) == 2)
        #expect(console.errors[3] == "ubd: --file can not be ''; name the file or block device behind the device")
    }

    @Test("shortens a long label at its beginning and keeps control characters out of it")
    func label() {
        #expect(AddCommand.label("a\nb") == "a?b")
        let long = AddCommand.label(String(repeating: "é", count: 2000) + "end")
        #expect(long.utf8.count <= 1024 && long.hasSuffix("end"))
    }
}

private func isInMemory(_ path: String) -> Bool {
    var system = statfs()
    return statfs(path, &system) == 0 && system.f_type == 0x0102_1994
}
