// engine-benchmark TARGET DEPTH REQUESTS: runs the queue engine without a device and prints how many requests it served.
// Tests/checks/engine-instructions runs it under callgrind and counts.
import CShims
import Glibc
import Targets
import Worker

func fail(_ text: String) -> Never {
    print("engine-benchmark: \(text)")
    exit(2)
}

let arguments = CommandLine.arguments
if arguments.dropFirst() == [Server.argument] {
    Server.serve(0)
    exit(0)
}
guard arguments.count == 4,
    let target = TargetList.all.first(where: { arguments[1] == $0.name || arguments[1] == $0.name + "-write" }),
    let depth = UInt16(arguments[2]), depth > 0, let requests = UInt64(arguments[3])
else { fail("usage: engine-benchmark null|loop|nbd[-write] DEPTH REQUESTS") }

var file: Int32 = -1
if target == .loop {
    file = memfd_create("engine-benchmark", 0)
    guard file >= 0, ftruncate(file, off_t(depth) * 4096) == 0 else { fail("no memory file: errno \(errno)") }
    // Written once, so that reads find pages and not holes.
    let page = [UInt8](repeating: 0x5a, count: 4096)
    for block in 0..<Int(depth) {
        guard pwrite(file, page, page.count, off_t(block * page.count)) == page.count else { fail("errno \(errno)") }
    }
}
if target == .nbd {
    file = Server.start(program: arguments[0])
    guard file >= 0 else { fail("no server: errno \(errno)") }
}
do {
    let start = monotonicClock()
    let served = try rehearse(target, depth: depth, requests: requests, writes: arguments[1] != target.name, file: file)
    let nanoseconds = monotonicClock() - start
    print("target=\(arguments[1]) depth=\(depth) requests=\(served) ns_per_request=\(nanoseconds / served)")
} catch {
    fail("\(error)")
}

func monotonicClock() -> UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}
