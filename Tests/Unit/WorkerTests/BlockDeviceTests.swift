import CShims
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Worker

/// A block device over a memory file, made by the kernel's loop driver. Needs root and /dev/loop-control.
struct LoopDevice: ~Copyable {
    let path: String
    private let node: FileDescriptor

    static var isAvailable: Bool { geteuid() == 0 && access("/dev/loop-control", R_OK | W_OK) == 0 }

    init(bytes: Int) throws {
        let memory = FileDescriptor(owning: try call("memfd_create") { memfd_create("disk", 0) })
        try memory.writeAll(TestFile.pattern(bytes))
        let control = try FileDescriptor.open("/dev/loop-control", O_RDWR)
        while true {
            let number = try call("LOOP_CTL_GET_FREE") { ioctl(control.raw, 0x4c82) }
            let path = "/dev/loop\(number)"
            let node = try FileDescriptor.open(path, O_RDWR)
            // Another process may have taken it meanwhile.
            if ioctl(node.raw, 0x4c00, memory.raw) == 0 {
                self.path = path
                self.node = node
                return
            }
            if errno != EBUSY { throw SystemError("LOOP_SET_FD", errno) }
        }
    }

    deinit { _ = ioctl(node.raw, 0x4c01) }
}

@Suite("A loop disk on a block device", .enabled(if: LoopDevice.isAvailable, "needs root and /dev/loop-control"))
struct BlockDeviceTests {
    private func launch(
        flags: LaunchMessage.Flags = [], offset: UInt64 = 0
    ) -> LaunchMessage {
        var launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 65536, flags: flags)
        launch.options.offset = offset
        return launch
    }

    private func open(_ descriptors: [Int32], _ launch: LaunchMessage) throws -> OpenTarget {
        var files: [ClientFile] = []
        for (index, descriptor) in descriptors.enumerated() {
            files.append(try ClientFile(checking: descriptor, index: index, launch))
        }
        return try LoopTarget.open(launch, files: files, kernel: .running(), canWait: true)
    }

    @Test("has the device's size and blocks, and tells the broker which device it is")
    func geometry() throws {
        let device = try LoopDevice(bytes: 1 << 20)
        let buffered = try FileDescriptor.open(device.path, O_RDWR)
        let direct = try FileDescriptor.open(device.path, O_RDWR | O_DIRECT)
        let target = try open([buffered.raw, direct.raw], launch())
        #expect(target.geometry.size == 1 << 20)
        #expect(target.geometry.logicalBlock == 512)
        #expect(target.geometry.backingMajor == 7)
        #expect(target.geometry.discardGranularity == 512)
        #expect(!target.geometry.attributes.contains(.buffered))
        #expect(target.files == [buffered.raw, direct.raw])
        #expect(target.fileSizeLimit == nil)
    }

    @Test("is read-only when the device was opened so")
    func readOnly() throws {
        let device = try LoopDevice(bytes: 1 << 20)
        let buffered = try FileDescriptor.open(device.path, O_RDONLY)
        let target = try open([buffered.raw], launch())
        #expect(target.geometry.attributes == [.readOnly, .fileReadOnly, .buffered, .directRefused])
    }

    @Test("reads, writes, flushes, discards and zeroes")
    func serves() throws {
        let device = try LoopDevice(bytes: 1 << 20)
        let buffered = try FileDescriptor.open(device.path, O_RDWR)
        let direct = try FileDescriptor.open(device.path, O_RDWR | O_DIRECT)
        let target = try open([buffered.raw, direct.raw], launch(offset: 4096))
        guard let loop = target.served as? LoopTarget else { throw SystemError("not a loop target", EINVAL) }
        var queue = try TestQueue(loop, files: target.files)
        #expect(try queue.read(sector: 8, sectors: 16).data == Array(TestFile.pattern(1 << 20)[8192..<16384]))
        let data = TestFile.pattern(8192, seed: 0x77)
        #expect(try queue.write(sector: 8, data) == 8192)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        #expect(try queue.read(sector: 8, sectors: 16).data == data)
        // The loop driver under the device turns both into holes of its memory file.
        #expect(try queue.perform(UblkIOOperation.discard, sector: 8, sectors: 8) == 0)
        #expect(try queue.read(sector: 8, sectors: 8).data.allSatisfy { $0 == 0 })
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: 16, sectors: 8) == 0)
        #expect(try queue.read(sector: 16, sectors: 8).data.allSatisfy { $0 == 0 })
        let operations = queue.submitted.map(\.operation)
        #expect(operations.filter { $0 == IOUring.Operation.uringCommand }.count == 1)
        #expect(operations.filter { $0 == IOUring.Operation.fallocate }.count == 1)
    }
}
