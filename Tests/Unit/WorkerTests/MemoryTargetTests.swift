import CShims
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import Worker

/// Real memfds, and what is none.
@Suite("Opening target memory")
struct MemoryTargetTests {
    private static let size: UInt64 = 1 << 20
    /// linux/fcntl.h: F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW; F_SEAL_WRITE; F_SEAL_FUTURE_WRITE.
    private static let wanted: Int32 = 1 | 2 | 4
    private static let write: Int32 = 8
    private static let futureWrite: Int32 = 16

    private static func memory(_ seals: Int32 = wanted, size: UInt64 = size) throws -> FileDescriptor {
        let file = FileDescriptor(
            owning: try call("memfd_create") { memfd_create("test", UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)) })
        try call("ftruncate") { ftruncate(file.raw, off_t(size)) }
        // F_ADD_SEALS.
        if seals != 0 { try call("seal") { fcntl(file.raw, 1033, seals) } }
        return file
    }

    private func opened(_ descriptors: [Int32], flags: LaunchMessage.Flags = [.allowOther]) throws(WorkerFailure)
        -> OpenTarget
    {
        var options = DeviceOptions(initialOf: .memory)
        options.size = Self.size
        let launch = LaunchMessage(
            target: .memory, queues: 1, depth: 1, maxIOBytes: 4096, flags: flags, options: options)
        var files: [ClientFile] = []
        for (index, descriptor) in descriptors.enumerated() {
            files.append(try ClientFile(checking: descriptor, index: index, launch))
        }
        return try MemoryTarget.open(launch, files: files, kernel: .running(), canWait: true)
    }

    private func refusal(_ descriptor: Int32) -> WorkerFailure? {
        do throws(WorkerFailure) { _ = try opened([descriptor]) } catch { return error }
        return nil
    }

    @Test("makes a disk of the memfd's size that has no cache to flush, and no ring that syncs or allocates")
    func opens() throws {
        let file = try Self.memory()
        let open = try opened([file.raw])
        #expect(open.geometry.size == Self.size && open.geometry.attributes == [])
        #expect(open.geometry.logicalBlock == 512)
        #expect(
            !open.unneeded.contains(IOUring.Operation.fsync) && !open.unneeded.contains(IOUring.Operation.fallocate))
    }

    @Test("refuses a memfd that may change its size, or the seals that keep it from that, or that can not be written")
    func seals() throws {
        let others: [Int32] = [0, 1, 2 | 4, 1 | 2, 1 | 4, Self.wanted | Self.write, Self.wanted | Self.futureWrite]
        for seals in others {
            let file = try Self.memory(seals)
            let failure = refusal(file.raw)
            #expect(failure?.step == .memoryNotSealed, "\(seals)")
            #expect(failure.map { $0.detail & 0x1f } == UInt64(seals), "\(seals)")
        }
        let file = try Self.memory()
        let readable = try FileDescriptor.open("/proc/self/fd/\(file.raw)", O_RDONLY)
        #expect(refusal(readable.raw)?.step == .memoryNotSealed)
    }

    @Test("refuses a memfd of another size than the broker counted")
    func sizes() throws {
        for size in [Self.size - 512, Self.size + 1, 0, 2 * Self.size] {
            let file = try Self.memory(size: size)
            #expect(refusal(file.raw) == WorkerFailure(.memorySize, detail: size))
        }
    }

    @Test("refuses what is no memfd")
    func others() throws {
        let file = try TestFile(bytes: Int(Self.size))
        #expect(refusal(file.file.raw)?.step == .memoryNotSealed)
        let null = try FileDescriptor.open("/dev/null", O_RDWR)
        #expect(refusal(null.raw)?.step == .fileIsCharacterDevice)
    }

    @Test("refuses a second file that is other memory")
    func twins() throws {
        let first = try Self.memory()
        let second = try Self.memory()
        #expect(throws: WorkerFailure(.filesDiffer, detail: 1)) { try opened([first.raw, second.raw]) }
    }
}
