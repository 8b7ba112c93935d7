import CShims
import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

extension LoopTarget: ServedTarget {
    static var manifest: TargetManifest { .loop }

    /// Opens the target on the client's files: the buffered one, then, if the file supports it, the direct one.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        let buffered = files[0]
        let direct = files.count > 1 ? files[1] : nil
        if let direct { try direct.checkIsSecondOpen(of: buffered) }
        var facts = try BackingFile(buffered, direct: direct)
        facts.discardsBlocks = kernel >= KernelVersion(6, 12)
        facts.doesRanges = canWait && kernel >= KernelVersion(6, 7)

        let plan = try LoopPlan(facts, launch)
        let target = LoopTarget(
            start: launch.options.offset, bounds: DiskBounds(size: plan.geometry.size, maxIOBytes: launch.maxIOBytes),
            readOnly: plan.readOnly, isBlockDevice: facts.isBlockDevice,
            direct: plan.direct,
            // The owner shares the open file and could set O_APPEND on it at any time.
            writeFlags: kernel >= KernelVersion(6, 9) ? IOUring.ReadWrite.noAppend : 0,
            zeroCopy: launch.flags.contains(.zeroCopy))
        var table = [buffered.descriptor]
        if plan.direct, let direct { table.append(direct.descriptor) }
        var geometry = plan.geometry
        geometry.file = buffered.identity
        var open = OpenTarget(served: target, geometry: geometry, files: table)
        open.unneeded = LoopTarget.unneeded(facts, plan)
        open.claim = ByteClaim(buffered, launch, size: plan.geometry.size, readOnly: plan.readOnly)
        if !facts.isBlockDevice, !plan.readOnly {
            let end = launch.options.offset + plan.geometry.size
            open.fileSizeLimit = end
            if facts.doesRanges {
                let dataFile = plan.direct ? direct ?? buffered : buffered
                do throws(SystemError) {
                    open.ranges = try FileRangeWork(
                        file: buffered.descriptor, dataFile: dataFile.descriptor, end: end)
                } catch { throw WorkerFailure(.memory, errno: error.errno) }
            }
        }
        return open
    }

    /// The operations of policy/rings/loop.ring that such a file does not need. FALLOCATE in particular: in a ring
    /// nothing compares its mode, and most of its modes give a regular file blocks past the end of the disk.
    private static func unneeded(_ file: BackingFile, _ plan: LoopPlan) -> [UInt8] {
        typealias Operation = IOUring.Operation
        if plan.readOnly {
            return [
                Operation.write, Operation.writeFixed, Operation.fsync, Operation.fallocate, Operation.futexWait,
            ]
        }
        if file.isBlockDevice { return [Operation.futexWait] }
        return file.doesRanges ? [Operation.fallocate] : [Operation.fallocate, Operation.futexWait]
    }
}

extension BackingFile {
    init(_ file: ClientFile, direct: ClientFile?) throws(WorkerFailure) {
        do {
            isBlockDevice = file.isBlockDevice
            if file.isBlockDevice {
                size = try file.blockQuery(ubd_BLKGETSIZE64, UInt64(0))
                logicalBlock = UInt32(max(512, try file.blockQuery(ubd_BLKSSZGET, Int32(512))))
                preferredBlock = try file.blockQuery(ubd_BLKPBSZGET, UInt32(512))
                let readOnlyDevice = try file.blockQuery(ubd_BLKROGET, Int32(0)) != 0
                writable = file.isWritable && !readOnlyDevice
                major = ubd_major(UInt64(file.status.st_rdev))
                minor = ubd_minor(UInt64(file.status.st_rdev))
            } else {
                size = UInt64(max(0, file.status.st_size))
                preferredBlock = UInt32(clamping: file.status.st_blksize)
                writable = file.isWritable
                forcesWrites = !file.isOnOtherFileSystem
                // On FUSE io_uring itself would continue a short direct read or write, at the wrong place: FUSE does
                // not report how far it got (seen on Linux 6.12 and 7.3; Tests/lab/groups/faults). An unknown file
                // system may lie on top of FUSE.
                isSafeDirectly = !file.isOnOtherFileSystem
                ranges = FileRanges(of: file.descriptor)
            }
            if let direct, isSafeDirectly { self.direct = direct.directNeeds(smallest: logicalBlock) }
        } catch {
            throw WorkerFailure(.geometry, errno: error.errno)
        }
    }
}
