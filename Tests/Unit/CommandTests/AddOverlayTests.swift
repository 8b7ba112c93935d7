import BrokerInterface
import CShims
import Glibc
import Synchronization
import SystemCalls
import Targets
import Testing
import Varlink

@testable import ubd

@Suite("ubd add of an overlay")
struct AddOverlayTests {
    private struct Parked {
        var seals: Int32
        var size: Int64
        var links: UInt64
        var flags: Int32
    }

    /// What `ubd add` asks for, and the files that it parks.
    private static func added(_ arguments: [String]) throws -> (request: AddRequest, files: [Parked], errors: [String])
    {
        let parked = Mutex<[Parked]>([])
        let broker = FakeBroker { connection, _ in
            for fd in connection.askForFiles(3) {
                var status = stat()
                fstat(fd, &status)
                // F_GET_SEALS.
                let one = Parked(
                    seals: fcntl(fd, 1034), size: Int64(status.st_size), links: UInt64(status.st_nlink),
                    flags: fcntl(fd, F_GETFL))
                parked.withLock { $0.append(one) }
                close(fd)
            }
            connection.send(AddReply.added(FakeBroker.device(target: "overlay", file: nil), notices: []).reply)
        }
        let console = Recorder()
        let status = CommandLineTool.run(["add", "-t", "overlay"] + arguments, broker.environment(console))
        #expect(status == 0, "\(console.errors)")
        #expect(broker.finish())
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        return (request, parked.withLock { $0 }, console.errors)
    }

    @Test(
        "parks a layer without a name, a sealed map, and the file as opened for reading, and names size and kind of layer"
    )
    func scratch() throws {
        let folder = TemporaryFolder()
        let file = folder.file("base.img", bytes: (1 << 20) + 700)
        let (request, files, _) = try Self.added(["-f", file, "--scratch", "/tmp"])
        let size: UInt64 = (1 << 20) + 512
        #expect(
            request.options == [OptionValue("size", String(size)), OptionValue("layer-kind", "scratch")])
        #expect(request.readOnly == nil && request.fileName == file)
        try #require(files.count == 3)
        #expect(files[0].links == 0 && files[0].flags & O_ACCMODE == O_RDWR)
        #expect(files[0].size == Int64(BlockMap.layerBytes(disk: size)))
        // F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW; F_SEAL_EXEC is there where the kernel has it.
        #expect(files[1].seals & 0xf == 7 && files[1].size == Int64(BlockMap.bytes(disk: size)))
        #expect(files[2].flags & O_ACCMODE == O_RDONLY && files[2].size == Int64((1 << 20) + 700))
    }

    @Test("keeps the layer in sealed memory when the device is no larger than --memory, and else in a file")
    func memory() throws {
        let folder = TemporaryFolder()
        let file = folder.file("base.img", bytes: 1 << 20)
        let (request, files, _) = try Self.added(["-f", file, "--memory", "1M"])
        #expect(request.options.last == OptionValue("layer-kind", "memory"))
        try #require(files.count == 3)
        #expect(files[0].seals & 0xf == 7 && files[0].size == 1 << 20 && files[0].flags & O_NONBLOCK != 0)
        let (other, _, _) = try Self.added(["-f", file, "--memory", "1M", "--size", "2M", "--scratch", "/tmp"])
        #expect(other.options == [OptionValue("size", "2097152"), OptionValue("layer-kind", "scratch")])
    }

    @Test("says who else may write the file")
    func writable() throws {
        let folder = TemporaryFolder()
        let file = folder.file("base.img", bytes: 1 << 20)
        chmod(file, 0o644)
        #expect(try Self.added(["-f", file, "--scratch", "/tmp"]).errors.filter { $0.contains("may write") } == [])
        chmod(file, 0o666)
        let errors = try Self.added(["-f", file, "--scratch", "/tmp"]).errors
        #expect(errors.contains { $0.contains("everybody may write \(file)") }, "\(errors)")
    }

    @Test("refuses what an overlay can not be, with the value and what to do")
    func refused() throws {
        let folder = TemporaryFolder()
        let file = folder.file("base.img", bytes: 1 << 20)
        let tiny = folder.file("tiny.img", bytes: 100)
        for (arguments, status, text) in [
            (["-f", file, "--read-only"], 2, "would stay what its file is"),
            (["-f", file, "--partition", "1"], 2, "serves no part of a file"),
            (["-f", file, "--scratch", "/nowhere"], 1, "/nowhere"), (["-f", file, "--memory", "much"], 2, "--memory"),
            (["-f", tiny], 2, "has 100 bytes"), (["-f", file, "--size", "65T"], 2, "size"),
            (["-f", file, "-q", "2"], 2, "single one"), ([], 2, "needs a file"),
        ] as [([String], Int32, String)] {
            let console = Recorder()
            let environment = CommandEnvironment(
                console: console, socketPath: "/nowhere", host: FakeMachine.healthy, executable: "")
            #expect(CommandLineTool.run(["add", "-t", "overlay"] + arguments, environment) == status, "\(arguments)")
            #expect(console.errors.last?.contains(text) == true, "\(arguments): \(console.errors)")
        }
    }

    @Test("the broker counts the map, and a layer that is memory")
    func counted() throws {
        let size = OptionValue("size", String(1 << 30))
        let scratch = try AddPlan(AddRequest(target: "overlay", options: [size]))
        #expect(scratch.diskBytes == 0)
        // 64 KiB and 32 KiB for each GiB, and a block for each of 128 requests.
        #expect(scratch.extraBytes == (64 << 10) + (32 << 10) + 128 * (4096 + 128))
        #expect(scratch.bufferBytes == 128 << 19 + scratch.extraBytes)
        let memory = try AddPlan(
            AddRequest(target: "overlay", options: [size, OptionValue("layer-kind", "memory")]))
        #expect(memory.diskBytes == 1 << 30 && memory.extraBytes == scratch.extraBytes)
        #expect(try AddPlan(AddRequest(target: "loop")).extraBytes == 0)
    }
}
