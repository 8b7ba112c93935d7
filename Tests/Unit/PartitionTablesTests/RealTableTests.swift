import Foundation
import Testing

@testable import PartitionTables

/// Tables that sfdisk makes, read here and compared with what sfdisk says of them.
@Suite("A table that sfdisk made")
struct RealTableTests {
    private static let sfdisk = "/usr/sbin/sfdisk"

    /// Its output. Input and output are files: reading a pipe may be interrupted, at which Foundation gives up.
    private func run(_ arguments: [String], input: String = "") throws -> String {
        let folder = FileManager.default.temporaryDirectory.appending(path: "ubd-sfdisk-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let (script, printed) = (folder.appending(path: "in"), folder.appending(path: "out"))
        try Data(input.utf8).write(to: script)
        try Data().write(to: printed)
        let process = Process()
        process.executableURL = URL(filePath: Self.sfdisk)
        process.arguments = arguments
        process.standardInput = try FileHandle(forReadingFrom: script)
        process.standardOutput = try FileHandle(forWritingTo: printed)
        process.standardError = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
        return try String(contentsOf: printed, encoding: .utf8)
    }

    private struct Printed: Decodable {
        struct Table: Decodable {
            struct Partition: Decodable {
                var node: String
                var start, size: UInt64
                var type: String
                var name: String?
            }
            var label: String
            var partitions: [Partition]?
        }
        var partitiontable: Table
    }

    @Test(
        "has the partitions that sfdisk sees: numbers, places, types and names",
        .enabled(if: FileManager.default.isExecutableFile(atPath: sfdisk), "sfdisk is not installed here"),
        arguments: [
            "label: gpt\nsize=1MiB, name=\"first one\"\nsize=2MiB, type=uefi\n",
            "label: gpt\ntable-length: 200\n7: size=1MiB\n3: size=1MiB\n150: size=1MiB, name=last\n",
            "label: gpt\n",
            "label: dos\nsize=1MiB, type=c, bootable\nsize=2MiB, type=83\n",
            "label: dos\nsize=1MiB\nsize=6MiB, type=5\nstart=9MiB, size=1MiB\n5: size=1MiB\n6: size=512KiB, type=82\n",
            "label: dos\nsize=1MiB\n4: start=4MiB, size=8MiB, type=f\n5: size=1MiB\n6: size=1MiB\n7: size=1MiB\n8: size=1MiB\n",
        ])
    func same(script: String) throws {
        let path = FileManager.default.temporaryDirectory.appending(path: "ubd-table-\(UUID()).img").path
        try Data(count: 16 << 20).write(to: URL(filePath: path))
        defer { unlink(path) }
        _ = try run(["-q", path], input: script)
        let printed = try JSONDecoder().decode(Printed.self, from: Data(try run(["--json", path]).utf8)).partitiontable
        let table = try MemoryDisk([UInt8](Data(contentsOf: URL(filePath: path)))).table()
        #expect(table.label.rawValue == printed.label && table.notes == [])
        #expect(table.partitions.map { "\(path)\($0.number)" } == (printed.partitions ?? []).map { $0.node })
        #expect(table.partitions.map(\.offset) == (printed.partitions ?? []).map { $0.start * 512 })
        #expect(table.partitions.map(\.size) == (printed.partitions ?? []).map { $0.size * 512 })
        #expect(table.partitions.map(\.type) == (printed.partitions ?? []).map(\.type))
        #expect(table.partitions.map { $0.name ?? "" } == (printed.partitions ?? []).map { $0.name ?? "" })
        #expect(table.partitions.allSatisfy { $0.fault == nil })
    }
}
