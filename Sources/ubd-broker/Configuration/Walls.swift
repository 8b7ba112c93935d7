import BrokerInterface
import CShims
import Glibc
import KernelABI
import Policy
import PolicyCompiler
import SystemCalls
import Targets
import WorkerProtocol

/// The sandbox bundles of one target, one for each mode, since the modes allow the rings different operations. They are
/// compiled when the broker starts; each worker gets its bundle as a sealed memfd.
final class Walls {
    let target: TargetManifest
    private let bundles: [SealedFile]

    private final class SealedFile {
        let file: FileDescriptor
        init(_ bytes: [UInt8]) throws(SystemError) { file = try Walls.sealed(bytes) }
    }

    /// Reads and compiles the policies of a target. Errors give file, line and column.
    convenience init(target: TargetManifest, folder: String) throws {
        let setup = try SeccompPolicy(parsing: "worker-setup.policy", read: Walls.reader(folder + "/seccomp"))
        let loop = try SeccompPolicy(parsing: "target-\(target.name).policy", read: Walls.reader(folder + "/seccomp"))
        let setupFilter = try SeccompCompiler.compile(setup).instructions
        let loopFilter = try SeccompCompiler.compile(loop).instructions
        var contents: [SandboxBundle] = []
        let socketRing =
            try target.submissions.hasSocket
            ? Walls.seal(by: RingPolicy(parsing: "\(target.name)-sockets.ring", read: Walls.reader(folder + "/rings")))
            : nil
        for mode in DataMode.allCases {
            let ring = try RingPolicy(
                parsing: "\(target.name).ring", for: RingMode(zeroCopy: mode.isZeroCopy, batch: mode.isBatch),
                read: Walls.reader(folder + "/rings"))
            contents.append(
                SandboxBundle(
                    setupFilter: setupFilter, loopFilter: loopFilter, ring: Walls.seal(by: ring),
                    socketRing: socketRing))
        }
        try self.init(target: target, contents: contents)
    }

    private static func seal(by policy: RingPolicy) -> RingSeal {
        RingSeal(
            operations: policy.operations, registerOperations: policy.registerOperations,
            flagsAllowed: policy.allowedFlags, flagsRequired: policy.requiredFlags)
    }

    /// `contents`: one bundle for each of `DataMode.allCases`, in their order.
    init(target: TargetManifest, contents: [SandboxBundle]) throws(SystemError) {
        precondition(contents.count == DataMode.allCases.count)
        self.target = target
        bundles = try contents.map { (content) throws(SystemError) in try SealedFile(content.encoded()) }
    }

    /// The memfd for a worker in this mode; `Walls` keeps ownership.
    func bundle(for mode: DataMode) -> Int32 {
        bundles[DataMode.allCases.firstIndex(of: mode) ?? 0].file.raw
    }

    private static func reader(_ folder: String) -> PolicyReader {
        { name in try TrustedFile.read(folder + "/" + name) }
    }

    /// A memfd whose content can never change.
    private static func sealed(_ bytes: [UInt8]) throws(SystemError) -> FileDescriptor {
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("ubd-walls", flags) })
        try file.writeAll(bytes)
        let seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
        try call("seal a memfd") { fcntl(file.raw, F_ADD_SEALS, seals) }
        return file
    }
}
