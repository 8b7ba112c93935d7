import KernelABI
import SystemCalls
import WorkerProtocol

@testable import Worker

/// What a worker reads from its broker: the first byte chooses which message. Whatever is accepted is written as it was
/// read, and a launch message makes, with any file, a disk that lies in that file and that the broker would accept.
func testLaunchMessages(_ input: [UInt8]) {
    var script = Script(input)
    let kind = script.next(UInt8.self) % 4
    switch kind {
    case 0:
        let bytes = script.rest()
        guard let message = ServeMessage(decoding: bytes) else { return }
        require(message.encoded() == bytes, "\(message)")
        let words = message.affinity.first?.count ?? 0
        require(message.processors(ofQueue: 0).count == words, "\(message)")
        require(message.processors(ofQueue: 65_535).count == (message.affinity.count == 1 ? words : 0), "\(message)")
    case 1:
        let bytes = script.rest()
        guard let bundle = SandboxBundle(decoding: bytes) else { return }
        require(bundle.encoded() == bytes && bytes.count <= SandboxBundle.longest, "\(bundle)")
        require(!bundle.setupFilter.isEmpty && !bundle.loopFilter.isEmpty, "a bundle without walls")
        require(!bundle.ring.operations.isEmpty && !bundle.ring.registerOperations.isEmpty, "a bundle without a seal")
    default:
        // A message of the old layout has 40 bytes; others have any number.
        let bytes = script.next(bytes: kind == 2 ? 40 : Int(script.next(UInt8.self)))
        guard let launch = LaunchMessage(decoding: bytes) else { return }
        require(launch.encoded() == bytes, "\(launch)")
        require(launch.queues > 0 && launch.depth > 0 && launch.maxIOBytes > 0, "\(launch)")
        for entry in launch.options.entries {
            require(
                launch.target.option(entry.number)?.accepts(entry.value) == true, "\(entry) of \(launch.target.name)")
        }
        require(launch.descriptors.upperBound <= 16, "\(launch)")
        testDisks(launch, &script)
    }
}

private func testDisks(_ launch: LaunchMessage, _ script: inout Script) {
    if let target = try? NullTarget.open(launch) { check(target.geometry, launch) }
    let (offset, asked) = (launch.options.offset, launch.options.size)
    let flags = script.next(UInt8.self)
    var file = BackingFile(size: script.next())
    file.isBlockDevice = flags & 1 != 0
    file.writable = flags & 2 != 0
    file.forcesWrites = flags & 4 != 0
    file.discardsBlocks = flags & 8 != 0
    // Block sizes as kernels have them: the worker asks the kernel, not the client.
    file.logicalBlock = file.isBlockDevice ? 512 << (UInt32(script.next(UInt8.self)) % 8) : 512
    file.preferredBlock = script.next()
    if flags & 16 != 0 { file.direct = DirectNeeds(block: script.next(), memory: script.next()) }
    guard let plan = try? LoopPlan(file, launch) else { return }
    check(plan.geometry, launch)
    require(offset < file.size && plan.geometry.size <= file.size - offset, "\(plan) beyond \(file)")
    require(asked.map { plan.geometry.size <= $0 } ?? true, "\(plan) is more than \(launch) asks for")
    require(plan.readOnly || file.writable && !launch.flags.contains(.readOnly), "\(plan) writes \(file)")
    require(!plan.direct || file.direct != nil && !launch.options.buffered, "\(plan) of \(file)")
    require(!plan.direct || offset % UInt64(file.direct!.block) == 0, "\(plan) is not aligned: \(file)")
}

private func check(_ geometry: Geometry, _ launch: LaunchMessage) {
    let message = WorkerMessage.geometry(geometry)
    require(WorkerMessage(decoding: message.encoded()) == message, "the broker would not take \(geometry) of \(launch)")
    let bounds = DiskBounds(size: geometry.size, maxIOBytes: launch.maxIOBytes)
    require(UInt64(bounds.maxSectors) <= bounds.sectors && bounds.sectors == geometry.size >> 9, "\(bounds)")
}
