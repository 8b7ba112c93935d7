import CShims
import Glibc
import SystemCalls

/// Who uses a block device: mounts, swap, devices on top of it, processes that have it open.
enum Holders {
    /// A sentence that names a holder which forbids taking the device away; nil when there is none. Never opens it.
    static func holder(of id: UInt32) -> String? {
        let numbers = deviceNumbers(id)
        return mountPoint(of: numbers) ?? swapArea(of: numbers) ?? stackedDevice(on: id)
    }

    /// A process that has the node open; for a message only, since processes come and go.
    static func opener(of id: UInt32) -> String? {
        let node = "/dev/ublkb\(id)"
        for pid in runningProcesses() {
            for name in listFolder("/proc/\(pid)/fd") {
                guard let target = Nodes.linkTarget("/proc/\(pid)/fd/\(name)"), target == node else { continue }
                let command = (try? readFile("/proc/\(pid)/comm")) ?? []
                let text = String(decoding: command.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
                return "process \(pid) (\(text))"
            }
        }
        return nil
    }

    /// "major:minor" of the disk and of its partitions.
    private static func deviceNumbers(_ id: UInt32) -> Set<String> {
        let disk = "ublkb\(id)"
        let folder = "/sys/block/\(disk)"
        let parts = listFolder(folder).filter { $0.hasPrefix(disk) }.map { "\(folder)/\($0)" }
        let numbers = ([folder] + parts).compactMap { try? readFile($0 + "/dev") }
        return Set(numbers.map { String(decoding: $0.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self) })
    }

    /// /proc/self/mountinfo: third field is the device, fifth the mount point (proc_pid_mountinfo(5)).
    private static func mountPoint(of numbers: Set<String>) -> String? {
        guard let bytes = try? readFile("/proc/self/mountinfo", limit: 1 << 24) else { return nil }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
            let fields = line.split(separator: " ")
            if fields.count > 4, numbers.contains(String(fields[2])) { return "mounted on \(fields[4])" }
        }
        return nil
    }

    /// /proc/swaps: first field is the path.
    private static func swapArea(of numbers: Set<String>) -> String? {
        guard let bytes = try? readFile("/proc/swaps") else { return nil }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n").dropFirst() {
            guard let path = line.split(whereSeparator: { $0 == " " || $0 == "\t" }).first else { continue }
            var status = stat()
            guard stat(String(path), &status) == 0, status.st_mode & S_IFMT == S_IFBLK else { continue }
            if numbers.contains("\(ubd_major(UInt64(status.st_rdev))):\(ubd_minor(UInt64(status.st_rdev)))") {
                return "in use as swap"
            }
        }
        return nil
    }

    private static func stackedDevice(on id: UInt32) -> String? {
        let disk = "ublkb\(id)"
        let folder = "/sys/block/\(disk)"
        let folders = [folder] + listFolder(folder).filter { $0.hasPrefix(disk) }.map { "\(folder)/\($0)" }
        for holders in folders.map({ $0 + "/holders" }) {
            guard let name = listFolder(holders).first else { continue }
            let mapped = (try? readFile("/sys/block/\(name)/dm/name")).map { bytes in
                String(decoding: bytes.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
            }
            return mapped.map { "held by device-mapper device \($0) (\(name))" } ?? "held by \(name)"
        }
        return nil
    }
}
