// The worker without any wall, for `bench`: the worker's own start, from the worker's own module, without Landlock, filters
// and the seal of its rings. bare.py starts it as root in no namespace; ubd-broker refuses it, as it refuses every worker
// whose walls it does not find.
import Glibc
import Worker
import WorkerProtocol

func serve() throws(WorkerFailure) -> Never {
    let start = try WorkerStart()
    let target = try start.openTarget()
    let rendezvous = try start.startQueues(target, try start.announce(target), seal: nil)
    try start.fetch(rendezvous)
    Control.say(WorkerMessage.sealed([]).encoded())
    while true { pause() }
}

do { try serve() } catch { Control.fail(error) }
