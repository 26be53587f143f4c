"""Kafka as the log.

driver `KafkaDriver`: the log, and its parts below options its keyword options cluster the connection: brokers, leaders, versions
of requests requests requests that aiokafka does not have records record batches as bytes producer appends, exactly once and in
order publish `step.ext` and `ctx.ext` fetcher fetches for all tails, one request a broker reader a reader of one partition of the
history finder the records of a key group assigns partitions to workers inbox reads requests from anyone dead_letters keeps
refused requests topics required settings of the topics transactions finds transactions that hang administration what the commands
do
"""

from stepfold.log import DeadLetter, Redriven

from .driver import KafkaDriver
from .options import KafkaOptions, KafkaSecurity
from .publish import KafkaContext, KafkaStep
from .topics import TopicDescription, TopicProblem

__all__ = [
    "DeadLetter",
    "KafkaContext",
    "KafkaDriver",
    "KafkaOptions",
    "KafkaSecurity",
    "KafkaStep",
    "Redriven",
    "TopicDescription",
    "TopicProblem",
]
